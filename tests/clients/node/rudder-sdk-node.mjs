// @rudderstack/rudder-sdk-node as an application uses it, with nothing changed but its host.
//
// Usage: rudder-sdk-node.mjs BASE_URL WRITE_KEY, in the folder that the SDK is installed in
//
// Prints what must arrive, one JSON object a line.

import { gunzipSync } from 'node:zlib'

import { calls } from './calls.mjs'
import { installed } from './installed.mjs'
import { fail, sendAll } from './send-all.mjs'

const Analytics = installed('@rudderstack/rudder-sdk-node')
const { version } = installed('@rudderstack/rudder-sdk-node/package.json')

const [dataPlaneUrl, writeKey] = process.argv.slice(2)
const analytics = new Analytics(writeKey, {
  dataPlaneUrl,
  errorHandler: (error) => fail('a request failed', error),
})

const sent = calls({ name: 'analytics-node', version }).map((call) => ({ ...call, arrives: asRudderSends(call.arrives) }))
await sendAll(analytics, sent, {
  posted: (request) => JSON.parse(gunzipSync(request)).batch,
  // It calls an event's time originalTimestamp, where Segment wants a timestamp.
  stamped: ({ messageId, originalTimestamp }) => ({ messageId, originalTimestamp, timestamp: originalTimestamp }),
})

// The traits of an identify are in its context too.
function asRudderSends(arrives) {
  if (arrives.type !== 'identify') return { ...arrives, channel: 'server' }
  const context = { ...arrives.context, library: { name: 'analytics-node', version }, traits: arrives.traits }
  return { ...arrives, channel: 'server', context }
}
