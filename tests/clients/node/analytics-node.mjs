// analytics-node, which @segment/analytics-node replaced, as an application uses it, with nothing changed but its host.
//
// Usage: analytics-node.mjs BASE_URL WRITE_KEY, in the folder that the SDK is installed in
//
// Prints what must arrive, one JSON object a line.

import { calls } from './calls.mjs'
import { installed } from './installed.mjs'
import { fail, sendAll } from './send-all.mjs'

const Analytics = installed('analytics-node')
const { version } = installed('analytics-node/package.json')

const [host, writeKey] = process.argv.slice(2)
const analytics = new Analytics(writeKey, { host, errorHandler: (error) => fail('a request failed', error) })

const sent = calls({ name: 'analytics-node', version })
await sendAll(analytics, sent, {
  posted: ({ batch }) => [...batch],
  stamped: ({ messageId, timestamp }) => ({ messageId, timestamp }),
})
