// The calls that every JavaScript client makes, in Node.js or in a page, and what must arrive of each, whichever SDK
// carries it.

// More than one request of any SDK holds.
const COUNTED = 120

// Of these, 480 KB hold fewer, and no SDK takes longer ones.
const LARGE = 20
const LARGE_BYTES = 30_000

const rich = {
  text: 'Grüße, 世界 👩‍🚀 \u200f\u2028 "quoted" \\ back / slash \t tab \0 nul \x1f',
  halved: '👩'.slice(0, 1),
  ключ: 'a key that is not ASCII',
  '': 'a key without a name',
  null: null,
  yes: true,
  no: false,
  safe: Number.MAX_SAFE_INTEGER,
  beyond_u64: 2 ** 64,
  tenth: 0.1,
  tiny: Number.MIN_VALUE,
  huge: 1e22,
  nested: { list: [1, [2, [3, { deep: [null, {}, []] }]]], empty: {} },
  products: Array.from({ length: 20 }, (_, n) => ({ sku: `SKU-${n}`, price: n + 0.99, tags: ['a', 'b'] })),
  moment: new Date(Date.UTC(2026, 0, 2, 3, 4, 5, 678)),
}

const richArrives = { ...rich, moment: '2026-01-02T03:04:05.678Z' }

const userId = 'пользователь-1@example.test'

const context = { ip: '203.0.113.7', locale: 'de-CH', campaign: { name: 'spring' } }
const integrations = { All: false, Mixpanel: { groups: ['a'] } }

// Each call as its method, the message given to the SDK, and what must arrive beside the `type`, where that is more or
// other than the message. `library` is how the SDK names itself in `context`.
export function calls(library) {
  const kinds = [
    // First, so that a page, which goes on being the last user identified, is that of the others afterwards.
    ['identify', { userId: 'user-0', anonymousId: null, traits: {} }, {}],
    ['identify', { userId, traits: rich }, { traits: richArrives, context: { library } }],
    ['track', { userId, event: 'Order Completed ✔', properties: rich }, { properties: richArrives }],
    [
      'track',
      {
        anonymousId: 'anonymous-1',
        event: 'Long Ago',
        timestamp: new Date(Date.UTC(2020, 0, 1, 0, 0, 0, 250)),
        context,
        integrations,
        messageId: 'given-by-the-application-1',
      },
      { timestamp: '2020-01-01T00:00:00.250Z', context: { ...context, library } },
    ],
    // The category stands in the properties too because some SDKs copy it there.
    [
      'page',
      {
        userId,
        category: 'Docs',
        name: 'Start',
        properties: { category: 'Docs', url: 'http://example.test/?a=1&b=%20' },
      },
      {},
    ],
    [
      'screen',
      { anonymousId: 'anonymous-1', category: 'Shop', name: 'Cart', properties: rich },
      { properties: richArrives },
    ],
    ['group', { userId, groupId: 'group-1', traits: rich }, { traits: richArrives }],
    ['alias', { previousId: 'anonymous-1', userId }, {}],
  ]
  const counted = Array.from({ length: COUNTED }, (_, number) => [
    'track',
    { userId, event: 'Counted', properties: { number } },
    {},
  ])
  const text = 'x'.repeat(LARGE_BYTES)
  const large = Array.from({ length: LARGE }, (_, number) => [
    'track',
    { userId, event: 'Large', properties: { number, text } },
    {},
  ])
  return [...kinds, ...counted, ...large].map(([method, message, other]) => ({
    method,
    message,
    arrives: { type: method, ...message, ...other },
  }))
}
