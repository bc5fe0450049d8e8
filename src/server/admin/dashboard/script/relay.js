// The relay: calls of the admin listener, and its streams, which are read with fetch, since an EventSource cannot bear a token.

// The stream of the snapshot has something to tell every second, the tail every 15 s. Whoever is silent for longer is gone.
const SNAPSHOT_SILENCE_MS = 8_000
const TAIL_SILENCE_MS = 45_000
const CALL_MS = 60_000
const BACKOFF_MS = 1_000
const BACKOFF_MAX_MS = 15_000

// In memory alone: it is gone with the page.
let token = null
let entered = null

class Refused extends Error {
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

async function request(path, options) {
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` }
  // No redirect leads away with the token, and no copy of an answer is kept.
  const fixed = { headers, cache: 'no-store', credentials: 'omit', redirect: 'error', referrerPolicy: 'no-referrer' }
  const reply = await fetch(path, { ...fixed, ...options })
  if (reply.ok) return reply
  const told = await reply.json().catch(() => ({}))
  throw new Refused(reply.status, told.message ?? `answered ${reply.status}`)
}

// Calls, and returns what `parse` makes of the answer.
async function call(method, path, parse = JSON.parse) {
  const reply = await request(path, { method, signal: AbortSignal.timeout(CALL_MS) })
  return parse(await reply.text())
}

// Reads a stream of server-sent events to its end, and hands each on.
async function read(path, silenceMs, signal, opened, told) {
  const silence = new AbortController()
  const listen = () => setTimeout(() => silence.abort(new Error('it is silent')), silenceMs)
  let timer = listen()
  try {
    const reply = await request(path, { signal: AbortSignal.any([signal, silence.signal]) })
    opened()
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader()
    for (let unread = ''; ; ) {
      const { done, value } = await reader.read()
      if (done) return
      clearTimeout(timer)
      timer = listen()
      const events = (unread + value).split('\n\n')
      unread = events.pop()
      for (const event of events) {
        const field = (name) => event.match(new RegExp(`^${name}: (.*)$`, 'm'))?.[1]
        if (field('data')) told(field('event') ?? 'message', JSON.parse(field('data')))
      }
    }
  } finally {
    clearTimeout(timer)
  }
}

// Reads a stream, and reads it anew whenever it ends, until `signal`. Ends with an error only where asking again would not help.
async function follow(path, silenceMs, signal, { opened = () => {}, told, lost }) {
  for (let attempt = 0; !signal.aborted; ) {
    let why = 'the daemon ended the stream'
    try {
      await read(path, silenceMs, signal, opened, (name, data) => {
        attempt = 0
        told(name, data)
      })
    } catch (error) {
      if (signal.aborted) return
      if (error.status === 401) {
        await enter()
        continue
      }
      if (error.status < 500) throw error
      why = error instanceof Refused ? error.message : 'the daemon does not answer'
    }
    const delay = Math.min(BACKOFF_MS * 2 ** attempt, BACKOFF_MAX_MS) * (0.75 + Math.random() / 2)
    attempt += 1
    lost(why, delay)
    await pause(delay, signal)
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true })
  })
}

// Asks for the token, once for all who need it.
function enter() {
  entered ??= new Promise((resolve) => {
    const [door, field] = [byId('door'), byId('token')]
    say(byId('door-error'), token === null ? '' : 'The daemon did not take this token.')
    byId('board').hidden = true
    door.hidden = false
    say(byId('link-state'), 'Waiting for the token')
    say(byId('link-more'), '')
    field.focus()
    door.onsubmit = (event) => {
      event.preventDefault()
      token = field.value.trim()
      field.value = ''
      door.hidden = true
      say(byId('link-state'), 'Connecting…')
      entered = null
      resolve()
    }
  })
  return entered
}

