// Dead letters: grouped by their reason's code, shown, replayed and purged. Replay and purge ask twice.

const PAGE_LETTERS = 20

let known = null
let asking = false

// Asks for the groups when the number of letters has changed.
async function showLetters({ events, bytes: size }) {
  const current = `${events} ${size}`
  if (asking || current === known) return
  asking = true
  try {
    drawGroups(grouped((await call('GET', '/dead-letters?limit=1')).groups))
    known = current
    say(byId('letters-note'), events === 0 ? 'There are none.' : `${plural(events, 'letter')}, ${bytes(size)}. An event that can never be delivered waits here until you decide.`)
  } catch {
    // The next snapshot asks again.
  } finally {
    asking = false
  }
}

// The listener tells lanes and statuses apart, too; by its code alone every group can be named in a query.
function grouped(groups) {
  const byCode = new Map()
  for (const { code, lane, status, events } of groups) {
    const group = byCode.get(code) ?? { key: code, events: 0, lanes: new Set(), statuses: new Set() }
    group.events += events
    if (lane !== null) group.lanes.add(lane)
    if (status !== null) group.statuses.add(status)
    byCode.set(code, group)
  }
  return [...byCode.values()].sort((a, b) => a.key.localeCompare(b.key))
}

const drawGroups = keyed(byId('letters'), ({ key: code }) => {
  const query = `code=${encodeURIComponent(code)}`
  const letters = element('ol')
  const draw = keyed(letters, letterItem)
  const count = element('span', { class: 'quiet' })
  let [group, loaded, after] = [null, [], null]
  const load = async () => {
    const page = await call('GET', `/dead-letters?${query}&limit=${PAGE_LETTERS}${after === null ? '' : `&after=${after}`}`)
    loaded = [...loaded, ...page.letters]
    after = page.next
    more.hidden = after === null
    draw(loaded.map((letter) => ({ key: letter.id, letter, gone })))
  }
  const gone = (id) => {
    loaded = loaded.filter((letter) => letter.id !== id)
    draw(loaded.map((letter) => ({ key: letter.id, letter, gone })))
  }
  const more = button('More', load)
  const inner = element('div', { class: 'inner', hidden: true }, letters, more)
  const opens = button('Show', async () => {
    if (inner.hidden) {
      ;[loaded, after] = [[], null]
      await load()
    }
    inner.hidden = !inner.hidden
    say(opens, inner.hidden ? 'Show' : 'Hide')
    opens.setAttribute('aria-expanded', String(!inner.hidden))
  })
  opens.setAttribute('aria-expanded', 'false')
  opens.setAttribute('aria-label', `Show ${code}`)
  const all = () => `${plural(group.events, 'letter')} (${code})`
  const reload = async () => {
    ;[loaded, after] = [[], null]
    if (!inner.hidden) await load()
  }
  const buttons = [
    opens,
    asked('Replay all', 'Replay', () => `Send ${all()} back into their lanes?`, () => replay(query).finally(reload)),
    asked('Purge all', 'Purge', () => `Delete ${all()} for ever?`, () => purge(query).finally(reload)),
  ]
  const head = element('div', { class: 'line' }, element('h3', {}, code), count, element('div', { class: 'buttons' }, ...buttons))
  const update = (item) => {
    group = item
    const statuses = [...group.statuses].map((status) => `answered ${status}`)
    const from = group.lanes.size > 0 ? [`of ${plural(group.lanes.size, 'lane')}`] : []
    say(count, [plural(group.events, 'letter'), ...from, ...statuses].join(', '))
  }
  return { made: element('li', {}, head, inner), update }
})

function letterItem({ letter, gone }) {
  const { id } = letter
  const event = element('pre', { hidden: true, tabindex: '0', 'aria-label': 'The event' })
  const opens = button('Show event', async () => {
    if (event.hidden) {
      const shown = await call('GET', `/dead-letters/${id}`, asSpelled)
      say(event, shown.event === undefined ? shown.event_text : JSON.stringify(shown.event, null, 2))
    }
    event.hidden = !event.hidden
    say(opens, event.hidden ? 'Show event' : 'Hide event')
    opens.setAttribute('aria-expanded', String(!event.hidden))
  })
  opens.setAttribute('aria-expanded', 'false')
  const work = (act) => async () => {
    if (await act(`id=${id}`)) gone(id)
  }
  const buttons = [
    opens,
    asked('Replay', 'Replay', () => 'Send this event back into its lane?', work(replay)),
    asked('Purge', 'Purge', () => 'Delete this event for ever?', work(purge)),
  ]
  const where = letter.lane === null ? 'no lane' : laneName(letter)
  const line = element('p', {}, `${moment(letter.buried_at)} · ${where} · ${letter.reason}`)
  const { list, update } = facts()
  update({
    Id: id,
    ...(letter.status !== null && { Answered: String(letter.status) }),
    ...(letter.answer !== '' && { Answer: letter.answer }),
    ...(letter.attempts > 0 && { Attempts: whole(letter.attempts) }),
    Size: bytes(letter.event_bytes),
  })
  return { made: element('li', {}, line, list, element('div', { class: 'buttons inner' }, ...buttons), event), update: () => {} }
}

// JSON whose numbers are shown as they are spelled, where the browser can: JavaScript's own are not as long as JSON's.
function asSpelled(text) {
  return JSON.parse(text, (_, value, context) => {
    return typeof value === 'number' && context && JSON.rawJSON ? JSON.rawJSON(context.source) : value
  })
}

// Both return whether all that was meant has gone.
async function replay(query) {
  const { replayed, failed_events: failed, failed: some } = await call('POST', `/dead-letters/replay?${query}`)
  const why = some.length > 0 ? ` ${whole(failed)} stay: ${some[0].message}.` : ''
  notice(`Replayed ${plural(replayed, 'letter')}.${why}`)
  return failed === 0
}

async function purge(query) {
  const { purged } = await call('DELETE', `/dead-letters?${query}`)
  notice(`Purged ${plural(purged, 'letter')}.`)
  return true
}

