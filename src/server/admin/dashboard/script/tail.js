// The live tail: what happens to single events, once somebody starts it.

// At a hundred events a second, more than a second of them.
const TAIL_SHOWN = 200
const TOLD = {
  accepted: { sign: '+', level: '' },
  delivered: { sign: '✓', level: 'good' },
  refused: { sign: '✕', level: 'bad' },
  rejected: { sign: '✕', level: 'bad' },
}

let tailing = null
let skipped = 0

byId('tail-form').addEventListener('submit', (event) => {
  event.preventDefault()
  startTail(new FormData(event.target))
})
byId('tail-stop').addEventListener('click', () => stopTail('Stopped.'))

async function startTail(form) {
  tailing?.abort()
  const started = (tailing = new AbortController())
  skipped = 0
  byId('tail').replaceChildren()
  say(byId('tail-skipped'), '')
  say(byId('tail-state'), 'Connecting…')
  byId('tail-stop').disabled = false
  const wanted = new URLSearchParams([...form].filter(([, value]) => value !== ''))
  try {
    await follow(`/tail?${wanted}`, TAIL_SILENCE_MS, started.signal, {
      opened: () => say(byId('tail-state'), 'Listening.'),
      told: (name, data) => (name === 'skipped' ? showSkipped(data.events) : showSighting(data)),
      lost: (why) => say(byId('tail-state'), `Interrupted: ${why}.`),
    })
  } catch (error) {
    if (tailing === started) stopTail(`Stopped: ${error.message}.`)
  }
}

function stopTail(why) {
  tailing?.abort()
  tailing = null
  const stop = byId('tail-stop')
  if (stop === document.activeElement) byId('tail-start').focus()
  stop.disabled = true
  say(byId('tail-state'), why)
}

function showSkipped(events) {
  skipped += events
  say(byId('tail-skipped'), `${plural(skipped, 'event')} left out: this is a sample.`)
}

function showSighting(told) {
  const { sign, level } = TOLD[told.what]
  const answer = told.status === null ? '' : `answered ${told.status}`
  const parts = [told.type, told.event, told.key, told.message_id, bytes(told.bytes), answer, told.reason]
  const made = element(
    'li',
    {},
    element('time', { class: 'quiet', datetime: told.time }, clock(new Date(told.time))),
    element('strong', { class: level }, `${sign} ${told.what}`),
    ...parts.filter(Boolean).map((part) => element('span', {}, part)),
  )
  const list = byId('tail')
  list.prepend(made)
  if (list.children.length > TAIL_SHOWN) list.lastElementChild.remove()
}

