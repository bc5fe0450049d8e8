// @segment/analytics-node as an application uses it, with nothing changed but its host.
//
// Usage: segment-analytics-node.mjs BASE_URL WRITE_KEY, in the folder that the SDK is installed in
//
// Prints what must arrive, one JSON object a line.

import { calls } from './calls.mjs'
import { installed } from './installed.mjs'

const { Analytics } = installed('@segment/analytics-node')

const [host, writeKey] = process.argv.slice(2)
const analytics = new Analytics({ writeKey, host })
const fail = (what, why) => {
  console.error(`${what}: ${why}`)
  process.exitCode = 1
}
analytics.on('error', ({ code, reason }) => fail(code, reason))

const sent = calls({ name: '@segment/analytics-node', version: analytics.VERSION })
for (const call of sent) {
  analytics[call.method](call.message, (error, context) => {
    if (error) fail(`a ${call.method} failed`, error)
    const { messageId, timestamp } = context?.event ?? {}
    call.stamped = { messageId, timestamp }
  })
}
await analytics.closeAndFlush()

for (const { method, stamped, arrives } of sent) {
  if (!stamped?.messageId) fail(`a ${method} was forgotten`, 'its callback was never called')
  console.log(JSON.stringify({ ...stamped, ...arrives }))
}
