// Charts: the last ten minutes, from the history that a stream begins with and the snapshots after it. Time is the daemon's uptime.

const CHART_SECONDS = 600
const POINT_SECONDS = 5
const CHART_HEIGHT = 100
const CHARTS = [
  { name: 'Accepted', of: ({ accepted }) => accepted, text: rate },
  { name: 'Delivered', of: ({ delivered }) => delivered, text: rate },
  { name: 'Waiting', of: ({ waiting }) => waiting, text: whole },
].map((chart) => {
  const [now, top] = [element('strong'), element('span')]
  const [line, area] = [drawing('polyline'), drawing('path')]
  const view = { viewBox: `0 0 ${CHART_SECONDS} ${CHART_HEIGHT}`, preserveAspectRatio: 'none', role: 'img' }
  const picture = drawing('svg', view, area, line)
  const axis = element('div', { class: 'axis', 'aria-hidden': 'true' }, element('span', {}, '10 min ago'), element('span', {}, 'now'))
  const caption = element('figcaption', {}, element('span', {}, chart.name), now, top)
  byId('charts').append(element('figure', {}, caption, picture, axis))
  return { ...chart, now, top, line, area, picture }
})

let history = null
let points = []
// Where the point that is under way began.
let begun = null

function startCharts(begins) {
  history = begins
  points = []
  begun = null
}

function addToCharts({ uptime_seconds: at, ingest, delivery, queue }) {
  if (history !== null) {
    points = history.points.map((point) => ({
      at: at - point.seconds_ago,
      accepted: point.accepted_per_second,
      delivered: point.delivered_per_second,
      waiting: point.queue_events,
    }))
    history = null
  }
  const now = { at, accepted: ingest.accepted_events, delivered: delivery.events }
  begun ??= now
  const seconds = at - begun.at
  if (seconds >= POINT_SECONDS) {
    const perSecond = (name) => Math.max(0, now[name] - begun[name]) / seconds
    points.push({ at, accepted: perSecond('accepted'), delivered: perSecond('delivered'), waiting: queue.events })
    begun = now
  }
  points = points.filter((point) => point.at > at - CHART_SECONDS)
  const last = { at, accepted: ingest.events_per_second, delivered: delivery.events_per_second, waiting: queue.events }
  CHARTS.forEach((chart) => draw(chart, [...points, last], at))
}

function draw({ name, of, text, now, top, line, area, picture }, all, at) {
  const values = all.map(of)
  const [current, lowest, highest] = [values.at(-1), Math.min(...values), Math.max(...values)]
  say(now, text(current))
  say(top, `highest ${text(highest)}`)
  const x = (point) => (point.at - at + CHART_SECONDS).toFixed(1)
  const y = (point) => (CHART_HEIGHT - 4 - (of(point) / (highest || 1)) * (CHART_HEIGHT - 8)).toFixed(1)
  const places = all.map((point) => `${x(point)},${y(point)}`)
  line.setAttribute('points', places.join(' '))
  area.setAttribute('d', `M${x(all[0])},${CHART_HEIGHT} L${places.join(' ')} L${CHART_SECONDS},${CHART_HEIGHT} Z`)
  picture.setAttribute('aria-label', `${name} over the last ten minutes: now ${text(current)}, lowest ${text(lowest)}, highest ${text(highest)}`)
}

