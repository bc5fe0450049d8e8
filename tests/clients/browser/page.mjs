// What runs in the page: analytics-next as a site uses it, with nothing changed but its host, and a page's own beacons.

import { calls } from './calls.mjs'

// Loads the SDK, makes all calls, and returns what must arrive, one JSON object a line. Text crosses to the driver whole,
// where an object would lose what no Unicode text can hold.
export async function send({ apiHost, writeKey, strategy }) {
  const { AnalyticsBrowser } = globalThis.AnalyticsNext
  const [analytics] = await AnalyticsBrowser.load(
    // What Segment's CDN would say, which cannot be asked here.
    { writeKey, cdnSettings: { integrations: { 'Segment.io': { apiKey: writeKey } } } },
    { integrations: { 'Segment.io': { apiHost, protocol: 'http', deliveryStrategy: { strategy } } } },
  )
  const library = { name: 'analytics.js', version: `next-${analytics.VERSION}` }
  const wanted = calls(library).map(async ({ method, message, arrives }) => {
    const { event } = await analytics[method](...ARGUMENTS[method](message), options(message))
    return JSON.stringify(together(JSON.parse(JSON.stringify(event)), arrives))
  })
  return (await Promise.all(wanted)).join('\n')
}

// Posts one event of each type as a page does that is being left; returns what must arrive, one JSON object a line.
export function beacons({ apiHost, writeKey }) {
  const one = calls({}).find(({ message }) => message.traits?.text)
  const lines = Object.entries(BEACONS).map(([path, { needs, more }]) => {
    const event = { type: needs, userId: one.message.userId, messageId: `beacon-${path}`, ...more }
    const body = JSON.stringify({ ...event, context: { rich: one.arrives.traits }, writeKey })
    if (!navigator.sendBeacon(`http://${apiHost}/${path}`, body)) throw new Error(`the beacon of a ${needs} was refused`)
    return body
  })
  return lines.join('\n')
}

const BEACONS = {
  t: { needs: 'track', more: { event: 'Left' } },
  i: { needs: 'identify', more: { traits: {} } },
  p: { needs: 'page', more: { name: 'Last' } },
  s: { needs: 'screen', more: { name: 'Last' } },
  g: { needs: 'group', more: { groupId: 'group-1' } },
  a: { needs: 'alias', more: { previousId: 'anonymous-1' } },
}

// Where the SDK of other languages takes a message, this one takes positions.
const ARGUMENTS = {
  identify: ({ userId, traits }) => [userId, traits],
  track: ({ event, properties }) => [event, properties ?? {}],
  page: ({ category, name, properties }) => [category, name, properties],
  screen: ({ category, name, properties }) => [category, name, properties],
  group: ({ groupId, traits }) => [groupId, traits],
  alias: ({ userId, previousId }) => [userId, previousId],
}

function options({ anonymousId, context, integrations, timestamp, messageId }) {
  // The SDK adds to the context that it is given.
  const given = structuredClone({ context, integrations, timestamp, messageId })
  return anonymousId ? { ...given, anonymousId } : given
}

// The event as the SDK made it, holding what it was given. A page always has an anonymousId, given or not.
function together(made, arrives) {
  const { sentAt, _metadata, ...event } = made
  const { anonymousId, ...given } = arrives
  for (const name of ['context', 'integrations', 'properties']) {
    if (given[name]) given[name] = { ...event[name], ...given[name] }
  }
  return { ...event, ...given, anonymousId: anonymousId ?? event.anonymousId }
}
