// Now: what is happening, in one glance.

// Above this share of its bound the queue is worth a word.
const FULL_SHARE = 0.8

function showNow(snapshot) {
  const { queue, delivery, ingest } = snapshot
  const share = queue.max_bytes > 0 ? queue.disk_bytes / queue.max_bytes : 0
  glance('accepting', accepting(snapshot))
  glance('delivering', delivering(snapshot))
  glance('waiting', {
    value: whole(queue.events),
    note: `${queue.events === 1 ? 'event' : 'events'}, ${bytes(queue.bytes)}; ${Math.round(share * 100)} % of the queue's disk`,
  })
  glance('oldest', queue.events > 0 ? { value: duration(queue.oldest_age_seconds), note: 'ago' } : { value: '–', note: 'nothing waits' })
  glance('done', done(snapshot))
  say(byId('about'), `${snapshot.version} · up ${duration(snapshot.uptime_seconds)} · ${whole(ingest.accepted_events)} accepted, ${whole(delivery.events)} delivered`)
  document.title = `${queue.events > 0 ? `${whole(queue.events)} waiting – ` : ''}segspool`
  showAttention(attention(snapshot, share).map((item) => ({ ...item, key: item.what })))
}

const showAttention = keyed(byId('attention'), ({ level }) => {
  const made = element('li', { class: level })
  return { made, update: ({ level, text }) => say(made, `${SIGNS[level]} ${text}`) }
})

function glance(id, { level, value, note }) {
  const where = byId(id).querySelector('dd')
  if (!where.hasChildNodes()) where.append(element('strong'), element('span'))
  const [strong, more] = where.children
  strong.className = level ?? ''
  say(strong, level ? `${SIGNS[level]} ${value}` : value)
  say(more, note)
}

function accepting({ state, ingest }) {
  if (state !== 'running') return { level: 'bad', value: 'No', note: `the daemon is ${state}` }
  if (!ingest.accepting) return { level: 'bad', value: 'No', note: 'the queue is full' }
  return { level: 'good', value: 'Yes', note: rate(ingest.events_per_second) }
}

function delivering({ lanes, delivery }) {
  const waiting = lanes.filter(({ events }) => events > 0)
  const inTrouble = waiting.filter(({ state }) => STATES[state].level !== 'good')
  const pace = rate(delivery.events_per_second)
  if (waiting.length === 0) return { level: 'good', value: 'Yes', note: `${pace}; nothing waits` }
  if (inTrouble.length === 0) return { level: 'good', value: 'Yes', note: pace }
  const counts = Object.entries(STATES).map(([name, { word }]) => [inTrouble.filter(({ state }) => state === name).length, word])
  const states = counts.filter(([count]) => count > 0).map(([count, word]) => `${plural(count, 'lane')} ${word}`)
  const level = inTrouble.some(({ state }) => state === 'held') ? 'bad' : 'care'
  return { level, value: inTrouble.length < waiting.length ? 'In part' : 'No', note: states.join(', ') }
}

function done({ lanes, queue, delivery }) {
  if (queue.events === 0) return { value: '–', note: 'nothing waits' }
  if (delivery.drain_eta_seconds !== null) return { value: duration(delivery.drain_eta_seconds), note: 'at the pace of the last ten seconds' }
  const needsSomebody = lanes.some(({ state, events }) => events > 0 && (state === 'held' || state === 'paused'))
  return { value: 'Not known', note: needsSomebody ? 'a lane waits for somebody' : 'the queue does not shrink' }
}

// What somebody should know of, or act on. A text changes seldom, since it is read out.
function attention({ lanes, queue, dead_letters }, share) {
  const named = (state) => lanes.filter((lane) => lane.state === state).map(laneName)
  const found = []
  const add = (what, level, holds, text) => holds && found.push({ what, level, text: text() })
  add('held', 'bad', named('held').length > 0, () => `Held, and tried again slowly until somebody acts: ${some(named('held'))}.`)
  add('paused', 'care', named('paused').length > 0, () => `Paused by an operator: ${some(named('paused'))}.`)
  add('full', 'care', share >= FULL_SHARE, () => `The queue has taken over ${Math.floor(share * 20) * 5} % of the disk that it may take.`)
  add('quarantine', 'bad', queue.quarantined_volumes > 0, () => `In quarantine, since the disk has damaged it: ${plural(queue.quarantined_volumes, 'volume')}.`)
  add('lost', 'bad', queue.lost_events > 0, () => `The disk did not give back ${plural(queue.lost_events, 'event')}.`)
  add('dropped', 'care', queue.dropped_events > 0, () => 'Events are dropped, as queue.when_full says.')
  add('unkept', 'care', dead_letters.unkept_events > 0, () => 'There was no room to keep all rejected events as dead letters.')
  return found
}

const some = (names) => (names.length > 3 ? `${names.slice(0, 3).join(', ')} and ${names.length - 3} more` : names.join(', '))

