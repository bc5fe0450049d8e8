//! Which call gets which answer. Pure: no I/O, no clock.

use serde::{Deserialize, Serialize};

use super::batch::Call;

/// One fault, or one exception from a fault. Of several rules the first that fits a call decides; a call that none
/// fits is answered as Segment would, or a webhook's receiver. A rule is for batches, unless it names a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The batches it is for.
    #[serde(default)]
    pub when: Match,
    /// What they get.
    pub answer: Answer,
    /// How many batches it is for; without it, all that fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

impl Rule {
    /// The same answer for every batch.
    pub fn always(answer: Answer) -> Self {
        Self::when(Match::default(), answer)
    }

    /// An answer for the batches that fit.
    pub fn when(when: Match, answer: Answer) -> Self {
        Self {
            when,
            answer,
            times: None,
        }
    }

    /// The same rule, for this many batches only.
    pub fn times(self, times: u32) -> Self {
        Self {
            times: Some(times),
            ..self
        }
    }
}

/// What a call must have to fit a rule: all that is set here. The default fits every batch, and no call to a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// The webhook of this name, or, with `*`, any: the rule is for its calls, and for no batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// This write key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_key: Option<String>,
    /// This text somewhere in the decoded body, for instance a `messageId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// A decoded body of more bytes than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_bytes: Option<usize>,
    /// More events than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_events: Option<usize>,
}

/// Stands for every webhook.
const ANY_HOOK: &str = "*";

impl Match {
    /// Every call to the webhook of this name.
    pub fn hook(name: impl Into<String>) -> Self {
        Self {
            hook: Some(name.into()),
            ..Self::default()
        }
    }

    fn fits(&self, call: &Call<'_>) -> bool {
        let is_for_it = match (self.hook.as_deref(), call.hook()) {
            (None, None) => true,
            (Some(wanted), Some(hook)) => wanted == ANY_HOOK || wanted == hook,
            (None, Some(_)) | (Some(_), None) => false,
        };
        let write_key = self.write_key.as_deref();
        let contains = self.contains.as_deref();
        is_for_it
            && write_key.is_none_or(|key| call.write_key() == Some(key))
            && self.over_bytes.is_none_or(|max| call.body().len() > max)
            && self.over_events.is_none_or(|max| call.len() > max)
            && contains.is_none_or(|text| String::from_utf8_lossy(call.body()).contains(text))
    }
}

/// What a call gets once it has been read in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// What Segment would answer, or a webhook's receiver.
    Ok,
    /// A status of choice. The events count as delivered if it is 2xx.
    Status {
        /// The HTTP status.
        code: u16,
        /// The value of `Retry-After`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<String>,
        /// The value of `X-RateLimit-Reset`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_limit_reset: Option<String>,
        /// The body; without it, Segment's for a 2xx and the name of the status for others.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
    },
    /// No answer until the rules change, which then decide anew, or the client goes away.
    Hang,
    /// A TCP reset, the events not accepted.
    Reset,
    /// A TCP reset after the events were accepted, so that sending them again makes duplicates.
    ResetAfterAccepting,
    /// The events are accepted and the status line sent at once, then the body one byte at a time.
    Drip {
        /// The pause before each byte.
        every_ms: u64,
    },
    /// A TCP reset, then the port and every connection closed for a while: an outage that begins with a batch.
    RefuseConnections {
        /// How long until it listens again; [`StandIn::up`](super::StandIn::up) ends it sooner.
        for_ms: u64,
    },
}

impl Answer {
    /// A status without further headers.
    pub fn status(code: u16) -> Self {
        Self::Status {
            code,
            retry_after: None,
            rate_limit_reset: None,
            body: None,
        }
    }

    /// A 429 with this `Retry-After`.
    pub fn rate_limited(retry_after: impl Into<String>) -> Self {
        Self::Status {
            code: 429,
            retry_after: Some(retry_after.into()),
            rate_limit_reset: None,
            body: None,
        }
    }
}

/// The rules in force.
#[derive(Default)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// The answer for this call; uses up one of the deciding rule's times.
    pub(super) fn pick(&mut self, call: &Call<'_>) -> Answer {
        let deciding = self
            .0
            .iter_mut()
            .find(|rule| rule.times != Some(0) && rule.when.fits(call));
        let Some(rule) = deciding else {
            return Answer::Ok;
        };
        rule.times = rule.times.map(|left| left - 1);
        rule.answer.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Batch;
    use super::super::hook::HookCall;
    use super::*;

    const BODY: &str =
        r#"{"writeKey":"k1","sentAt":"now","batch":[{"messageId":"a"},{"messageId":"b"}]}"#;

    #[test]
    fn a_rule_is_for_the_batches_that_have_all_it_asks_for() {
        let batch = Call::Batch(Batch::parse(BODY, None).expect("this is a batch"));
        let any = Match::default;
        let cases = [
            (any(), true),
            (
                Match {
                    write_key: Some("k1".into()),
                    ..any()
                },
                true,
            ),
            (
                Match {
                    write_key: Some("k2".into()),
                    ..any()
                },
                false,
            ),
            (
                Match {
                    contains: Some("\"b\"".into()),
                    ..any()
                },
                true,
            ),
            (
                Match {
                    contains: Some("\"c\"".into()),
                    ..any()
                },
                false,
            ),
            (
                Match {
                    over_events: Some(1),
                    ..any()
                },
                true,
            ),
            (
                Match {
                    over_events: Some(2),
                    ..any()
                },
                false,
            ),
            (
                Match {
                    over_bytes: Some(BODY.len() - 1),
                    ..any()
                },
                true,
            ),
            (
                Match {
                    over_bytes: Some(BODY.len()),
                    ..any()
                },
                false,
            ),
            (
                Match {
                    write_key: Some("k1".into()),
                    over_events: Some(2),
                    ..any()
                },
                false,
            ),
        ];
        for (when, expected) in cases {
            assert_eq!(when.fits(&batch), expected, "{when:?}");
        }
    }

    #[test]
    fn a_rule_is_for_batches_unless_it_names_a_webhook() {
        let batch = Call::Batch(Batch::parse(BODY, None).expect("this is a batch"));
        let hook = |name| {
            Call::Hook(HookCall {
                name,
                body: br#"{"messageId":"a"}"#,
                content_type: None,
                signature: None,
            })
        };
        let containing = |text: &str| Match {
            contains: Some(text.into()),
            ..Match::hook("orders")
        };
        for (when, expected) in [
            (Match::default(), [true, false, false]),
            (Match::hook("orders"), [false, true, false]),
            (Match::hook("*"), [false, true, true]),
            (containing("\"a\""), [false, true, false]),
            (containing("\"b\""), [false, false, false]),
        ] {
            let calls = [&batch, &hook("orders"), &hook("other")];
            assert_eq!(calls.map(|call| when.fits(call)), expected, "{when:?}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides_until_its_times_are_used_up() {
        let batch = Call::Batch(Batch::parse(BODY, None).expect("this is a batch"));
        let other_key = Match {
            write_key: Some("k2".into()),
            ..Match::default()
        };
        let mut rules = Rules::new(vec![
            Rule::when(other_key, Answer::Hang),
            Rule::always(Answer::status(503)).times(2),
            Rule::always(Answer::Reset).times(1),
        ]);
        let picked = [(); 4].map(|()| rules.pick(&batch));
        let expected = [
            Answer::status(503),
            Answer::status(503),
            Answer::Reset,
            Answer::Ok,
        ];
        assert_eq!(picked, expected);
    }

    #[test]
    fn rules_are_written_in_json_as_documented() {
        let cases = [
            (r#"{"answer":"hang"}"#, Rule::always(Answer::Hang)),
            (
                r#"{"when":{"over_events":1},"answer":{"status":{"code":429,"retry_after":"2"}},"times":3}"#,
                Rule::when(
                    Match {
                        over_events: Some(1),
                        ..Match::default()
                    },
                    Answer::rate_limited("2"),
                )
                .times(3),
            ),
            (
                r#"{"answer":{"drip":{"every_ms":5}}}"#,
                Rule::always(Answer::Drip { every_ms: 5 }),
            ),
            (
                r#"{"answer":{"refuse_connections":{"for_ms":5}}}"#,
                Rule::always(Answer::RefuseConnections { for_ms: 5 }),
            ),
        ];
        for (json, expected) in cases {
            let rule: Rule = serde_json::from_str(json).expect("this is a rule");
            assert_eq!(rule, expected);
        }
        for misspelt in [
            r#"{"answer":"hang","time":1}"#,
            r#"{"answer":"hang","when":{"over":1}}"#,
            r#"{"answer":{"status":{"code":429,"retry-after":"2"}}}"#,
        ] {
            assert!(
                serde_json::from_str::<Rule>(misspelt).is_err(),
                "{misspelt}"
            );
        }
    }
}
