// How the dashboard is told: one script in several files, joined in this order, in one scope.

// Words: how numbers, times and states are said. Pure.

const WHOLE = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const TENTHS = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
const STATES = {
  idle: { sign: '○', word: 'idle', level: 'good' },
  sending: { sign: '▶', word: 'sending', level: 'good' },
  backing_off: { sign: '↻', word: 'backing off', level: 'care' },
  rate_limited: { sign: '↻', word: 'rate limited', level: 'care' },
  paused: { sign: '⏸︎', word: 'paused', level: 'care' },
  held: { sign: '✕', word: 'held', level: 'bad' },
}
const SIGNS = { good: '✓', care: '!', bad: '✕' }

const whole = (number) => WHOLE.format(number)

const rate = (perSecond) => `${perSecond < 10 ? TENTHS.format(perSecond) : whole(perSecond)}/s`

const plural = (number, one, many = `${one}s`) => `${whole(number)} ${number === 1 ? one : many}`

function bytes(number) {
  const power = number < 1 ? 0 : Math.min(Math.floor(Math.log2(number) / 10), UNITS.length - 1)
  return `${TENTHS.format(number / 1024 ** power)} ${UNITS[power]}`
}

// At most two units, the larger first.
function duration(seconds) {
  const s = Math.max(0, Math.round(seconds))
  if (s < 60) return `${s} s`
  if (s < 3600) return s < 600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`
  return `${whole(Math.floor(s / 86_400))} d ${Math.floor((s % 86_400) / 3600)} h`
}

const clock = (date) => date.toLocaleTimeString('en-GB')

const moment = (text) => new Date(text).toLocaleString('en-GB')

const laneName = ({ destination, key }) => [destination, key].filter(Boolean).join(' ')

