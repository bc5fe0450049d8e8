// Opens a page in Chromium that sends to the relay, which has another origin than the page.
//
// Usage: analytics-next.mjs BASE_URL WRITE_KEY CHROMIUM MODE, in the folder that the SDK is installed in
//
// Standard input is the socket on which the page is served: whoever bound it knew the page's origin before this ran.
// MODE is what the page does, and what must be seen of it on the network:
//
//   standard, batching   analytics-next sends all calls with this delivery strategy. The first request is answered 503
//                        before the relay sees it, so that a retry, too, has to get past the relay's CORS.
//   beacon               the page posts by navigator.sendBeacon, which asks nobody.
//   unlisted             the page does both, and the relay refuses both.
//
// Prints what must arrive, one JSON object a line.

import { createServer } from 'node:http'
import { readFile } from 'node:fs/promises'

import { installed } from '../node/installed.mjs'
import { launch } from './chromium.mjs'

const PATIENCE_MS = 50_000

const MIME = 'text/javascript; charset=utf-8'
const FILES = {
  '/sdk.js': installed.resolve('@segment/analytics-next/dist/umd/index.js'),
  '/page.mjs': new URL('page.mjs', import.meta.url),
  '/calls.mjs': new URL('../node/calls.mjs', import.meta.url),
}
const PAGE = '<!doctype html><title>Лавка</title><script src="/sdk.js"></script>'

const [relay, writeKey, executablePath, mode] = process.argv.slice(2)

const server = createServer(async ({ url }, reply) => {
  if (url === '/') reply.setHeader('content-type', 'text/html; charset=utf-8').end(PAGE)
  else if (FILES[url]) reply.setHeader('content-type', MIME).end(await readFile(FILES[url]))
  else reply.writeHead(404).end()
})
await new Promise((listening) => server.listen({ fd: 0 }, listening))
const origin = `http://127.0.0.1:${server.address().port}`

const browser = await launch(executablePath)
try {
  const page = await browser.newPage()
  const network = await watch(await page.context().newCDPSession(page))
  await page.goto(`${origin}/`)
  const apiHost = `${new URL(relay).host}/v1`
  const run = (name, given) =>
    page.evaluate(
      async ([name, given]) => (await import('/page.mjs'))[name](given),
      [name, { apiHost, writeKey, ...given }],
    )

  if (mode === 'unlisted') {
    // What is never answered is never rid of: the SDK goes on trying.
    run('send', { strategy: 'standard' }).catch(() => {})
    await run('beacons')
    await network.until('a preflight and a beacon answered 403', ({ preflights, posts }) =>
      [preflights, posts].every((seen) => seen.some(({ status }) => status === 403)),
    )
    const { preflights, posts } = network.seen
    for (const { type, status } of [...preflights, ...posts]) {
      expect(status === 403, `a ${type} was answered ${status}`)
    }
    expect(posts.every(({ type }) => type === 'Ping'), 'an event was posted after a refused preflight')
  } else if (mode === 'beacon') {
    const lines = await run('beacons')
    const all = lines.split('\n').length
    await network.until('all beacons answered', ({ posts }) => posts.length === all)
    expect(network.seen.preflights.length === 0, 'a beacon was preflighted')
    expect(network.seen.posts.every(({ status }) => status === 200), 'a beacon was not answered 200')
    console.log(lines)
  } else {
    await network.failFirst()
    const lines = await run('send', { strategy: mode })
    const all = lines.split('\n').length
    await network.until('all events answered 200', ({ posts }) => delivered(posts) === all)
    const { preflights, posts } = network.seen
    expect(preflights.length > 0, 'nothing was preflighted')
    for (const { status, asks } of preflights) {
      expect(status >= 200 && status < 300, `a preflight was answered ${status}`)
      expect(asks.includes('authorization'), `a preflight asked for ${asks}`)
    }
    expect(posts.some(({ retry, status }) => retry && status === 200), 'no retry was answered 200')
    console.log(lines)
  }
} finally {
  await browser.close()
  server.close()
}

function expect(holds, otherwise) {
  if (holds) return
  console.error(`${mode}: ${otherwise}`)
  process.exitCode = 1
}

function delivered(posts) {
  const bodies = posts.filter(({ status }) => status === 200).map(({ body }) => JSON.parse(body))
  return bodies.reduce((sum, { batch }) => sum + (batch?.length ?? 1), 0)
}

function summary({ preflights, posts }) {
  const answers = [...preflights, ...posts].map(({ type, status }) => `${type} answered ${status}`)
  return answers.join(', ') || 'nothing'
}

// Follows the page's requests to the relay; page.on('request') would not tell of preflights.
async function watch(session) {
  const asked = new Map()
  const seen = { preflights: [], posts: [] }
  let changed = () => {}

  const request = (id) => asked.get(id) ?? asked.set(id, {}).get(id)
  session.on('Network.requestWillBeSent', ({ requestId, type, request: { url, headers, postData } }) => {
    const retry = Object.keys(headers).some((name) => name.toLowerCase() === 'x-retry-count')
    Object.assign(request(requestId), { type, url, retry, body: postData })
  })
  session.on('Network.requestWillBeSentExtraInfo', ({ requestId, headers }) => {
    const name = Object.keys(headers).find((name) => name.toLowerCase() === 'access-control-request-headers')
    request(requestId).asks = headers[name] ?? ''
  })
  session.on('Network.responseReceived', async ({ requestId, type, response: { url, status } }) => {
    if (!url.startsWith(relay)) return
    const answered = Object.assign(request(requestId), { type, status })
    if (answered.type === 'Fetch' && !answered.body) {
      answered.body = (await session.send('Network.getRequestPostData', { requestId })).postData
    }
    seen[answered.type === 'Preflight' ? 'preflights' : 'posts'].push(answered)
    changed()
  })
  await session.send('Network.enable', { maxPostDataSize: 1 << 20 })

  return {
    seen,

    // Waits until enough was seen.
    until: (what, reached) =>
      new Promise((resolve, reject) => {
        const late = setTimeout(() => reject(new Error(`never seen: ${what}; but ${summary(seen)}`)), PATIENCE_MS)
        changed = () => {
          if (!reached(seen)) return
          clearTimeout(late)
          resolve()
        }
        changed()
      }),

    // Answers the next event that is posted, and no other, as a relay in trouble.
    failFirst: async () => {
      let failed = false
      session.on('Fetch.requestPaused', ({ requestId, request: { method } }) => {
        if (failed || method === 'OPTIONS') return session.send('Fetch.continueRequest', { requestId })
        failed = true
        const responseHeaders = [{ name: 'Access-Control-Allow-Origin', value: origin }]
        return session.send('Fetch.fulfillRequest', { requestId, responseCode: 503, responseHeaders })
      })
      await session.send('Fetch.enable', { patterns: [{ urlPattern: `${relay}/*`, requestStage: 'Request' }] })
    },
  }
}
