// The life of the page: it follows the snapshots while it is seen, says so when the daemon is gone, and since when.

let following = null
let lostAt = null
let retryAt = null
let version = null

async function live() {
  following?.abort()
  following = new AbortController()
  try {
    await follow('/stats/stream', SNAPSHOT_SILENCE_MS, following.signal, { told: showTold, lost: showLost })
  } catch (error) {
    say(byId('link-state'), `✕ ${error.message}`)
  }
}

function showTold(name, data) {
  if (name === 'history') return startCharts(data)
  version ??= data.version
  // Another version has another page.
  if (version !== data.version) return location.reload()
  lostAt = null
  byId('board').hidden = false
  byId('board').classList.remove('is-old')
  byId('link-state').className = 'good'
  say(byId('link-state'), '✓ Live')
  say(byId('link-more'), '')
  showNow(data)
  addToCharts(data)
  showLanes(data.lanes)
  showLetters(data.dead_letters)
}

function showLost(why, delay) {
  lostAt ??= new Date()
  retryAt = Date.now() + delay
  byId('board').classList.add('is-old')
  byId('link-state').className = 'bad'
  say(byId('link-state'), `✕ No news since ${clock(lostAt)}: ${why}.`)
  showRetry()
}

// It counts down beside what is read out.
function showRetry() {
  if (lostAt === null) return
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))
  say(byId('link-more'), seconds > 0 ? `Next try in ${seconds} s.` : 'Trying again…')
}
setInterval(showRetry, 1000)

// A page that nobody sees leaves its place to others; the history fills in what it has missed.
document.addEventListener('visibilitychange', () => (document.hidden ? following?.abort() : live()))
live()
