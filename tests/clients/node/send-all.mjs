// How an application uses analytics-node and the SDKs that descend from it.

// Makes all calls, waits until the SDK says that it is rid of them, and prints what must arrive, one JSON object a line.
// `posted` reads the events of a request out of what the SDK calls back with, and `stamped` what the SDK adds to one of
// them that must arrive too.
export async function sendAll(analytics, sent, { posted, stamped }) {
  const batches = new Map()
  const done = sent.map(
    ({ method, message, arrives }) =>
      new Promise((resolve) => {
        analytics[method](message, (error, request) => {
          if (error) return resolve(fail(`a ${method} failed`, error))
          // Each event of a request is called back for with all of the request, in their order.
          if (!batches.has(request)) batches.set(request, posted(request))
          const event = batches.get(request).shift()
          resolve(console.log(JSON.stringify({ ...stamped(event), ...arrives })))
        })
      }),
  )
  // One flush sends one request.
  while (analytics.queue.length > 0) await analytics.flush()
  await Promise.all(done)
}

export function fail(what, why) {
  console.error(`${what}: ${why}`)
  process.exitCode = 1
}
