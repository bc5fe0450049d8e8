// Lanes: what each is doing, and an operator's hand on it.

// More would be slow to draw every second, and nobody reads them.
const LANES_SHOWN = 50

function showLanes(lanes) {
  // Those in trouble are always among them. Their order does not change, so that no button moves away from under a finger.
  const trouble = ({ state }) => ['good', 'care', 'bad'].indexOf(STATES[state].level)
  const chosen = [...lanes].sort((a, b) => trouble(b) - trouble(a)).slice(0, LANES_SHOWN)
  const order = (a, b) => laneName(a).localeCompare(laneName(b)) || a.id.localeCompare(b.id)
  const items = chosen.sort(order).map((lane) => ({ key: lane.id, lane }))
  drawLanes(items)
  drawChoices(items)
  const more = lanes.length - chosen.length
  const beyond = more > 0 ? `${plural(lanes.length, 'lane')}; shown are those in trouble and those with most events.` : ''
  say(byId('lanes-note'), lanes.length === 0 ? 'There are none yet: a lane comes with the first event of a write key.' : beyond)
}

const drawLanes = keyed(byId('lanes'), ({ key: id, lane }) => {
  const name = laneName(lane)
  const [state, reason, { list, update }] = [element('strong'), element('p'), facts()]
  const hand = async (what, said) => {
    const changed = await call('POST', `/lanes/${id}/${what}`)
    show({ lane: changed })
    notice(`${said} ${name}.`)
  }
  const pauses = button('Pause', () => hand('pause', 'Paused'))
  const resumes = button('Resume', () => hand('resume', 'Resumed'))
  pauses.setAttribute('aria-label', `Pause ${name}`)
  resumes.setAttribute('aria-label', `Resume ${name}`)
  const head = element('div', { class: 'line' }, element('h3', {}, name), state, element('div', { class: 'buttons' }, resumes, pauses))
  const made = element('li', {}, head, reason, list)
  const show = ({ lane }) => {
    const { sign, word, level } = STATES[lane.state]
    state.className = level
    say(state, `${sign} ${word}`)
    const next = lane.retry_in_seconds === null ? '' : `next try in ${duration(lane.retry_in_seconds)}`
    say(reason, [lane.reason, next].filter(Boolean).join('; '))
    // A held lane that is resumed tries at once.
    const isPaused = lane.state === 'paused'
    swap(pauses, resumes, { hides: isPaused, shows: isPaused || lane.state === 'held' })
    update({
      Waiting: `${whole(lane.events)}, ${bytes(lane.bytes)}`,
      ...(lane.events > 0 && { Oldest: duration(lane.oldest_age_seconds) }),
      Delivered: `${whole(lane.delivered_events)} in ${plural(lane.delivered_batches, 'batch', 'batches')}`,
      ...(lane.in_flight_batches > 0 && { 'Under way': plural(lane.in_flight_batches, 'batch', 'batches') }),
      ...(lane.attempt > 0 && { 'Failures in a row': whole(lane.attempt) }),
      ...(lane.last_status !== null && { 'Last answer': String(lane.last_status) }),
      ...(lane.last_error !== null && { 'Last error': lane.last_error }),
      ...(lane.dead_letter_events > 0 && { 'Dead letters': whole(lane.dead_letter_events) }),
    })
  }
  return { made, update: show }
})

// Shows the one and hides the other. A focus that would get lost goes to the one that is shown.
function swap(pauses, resumes, { hides, shows }) {
  const focused = [pauses, resumes].find((one) => one === document.activeElement)
  pauses.hidden = hides
  resumes.hidden = !shows
  if (focused?.hidden) [pauses, resumes].find((one) => !one.hidden)?.focus()
}

// The lanes that the tail can be narrowed down to.
const drawChoices = keyed(byId('tail-lanes'), ({ lane }) => {
  return { made: element('option', { value: lane.id }, laneName(lane)), update: () => {} }
})

