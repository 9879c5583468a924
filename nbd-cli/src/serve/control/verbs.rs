//! The verbs that a control socket knows.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::protocol::Request;

/// What answers the requests of one verb.
type Handler = Box<dyn Fn(Value) -> Result<Value, String> + Send + Sync>;

/// The arguments of a verb that has none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serve) struct NoArguments {}

/// Verbs, each with what answers it. Requests are answered on several threads at a time.
#[derive(Default)]
pub(in crate::serve) struct Verbs(BTreeMap<&'static str, Handler>);

impl Verbs {
    /// None at all.
    pub(in crate::serve) fn new() -> Self {
        Self::default()
    }

    /// One more. `answer` gets the arguments of a request, of which it knows all (`deny_unknown_fields`); what it gives
    /// is the answer, or the text of the error for the client.
    #[must_use]
    pub(in crate::serve) fn with<A: DeserializeOwned, R: Serialize>(
        mut self,
        verb: &'static str,
        answer: impl Fn(A) -> Result<R, String> + Send + Sync + 'static,
    ) -> Self {
        let handler = move |arguments| {
            let arguments = serde_json::from_value(arguments)
                .map_err(|error| format!("the arguments of {verb} are malformed: {error}"))?;
            let answer = answer(arguments)?;
            serde_json::to_value(answer).map_err(|error| format!("the answer is lost: {error}"))
        };
        let earlier = self.0.insert(verb, Box::new(handler));
        debug_assert!(earlier.is_none(), "{verb} is there twice");
        self
    }

    /// Carries out a request.
    pub(super) fn carry_out(&self, request: Request) -> Result<Value, String> {
        let Request { verb, arguments, .. } = request;
        let Some(handler) = self.0.get(&*verb) else {
            let known = self.0.keys().copied().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "'{verb}' is unknown to this server, which may be of another version; it knows {known}"
            ));
        };
        let logged = arguments.to_string();
        let result = handler(arguments);
        let error = result.as_ref().err();
        tracing::info!(verb, arguments = logged, error, "control");
        result
    }
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Double {
        number: u32,
    }

    #[test]
    fn a_verb_gets_its_arguments_and_no_others() {
        let verbs = Verbs::new()
            .with("double", |Double { number }| number.checked_mul(2).ok_or("too large".into()))
            .with("nothing", |NoArguments {}| Ok(()));
        let ask = |verb: &str, arguments: Value| verbs.carry_out(Request::new(verb, &arguments));
        assert_eq!(ask("double", json!({"number": 4})), Ok(json!(8)));
        assert_eq!(ask("double", json!({"number": u32::MAX})), Err("too large".into()));
        assert_eq!(ask("nothing", json!({})), Ok(Value::Null));
        for (verb, arguments, says) in [
            ("double", json!({}), "missing field `number`"),
            ("double", json!({"number": -1}), "arguments of double are malformed"),
            ("double", json!({"number": 1, "more": 1}), "unknown field `more`"),
            ("nothing", json!({"more": 1}), "unknown field `more`"),
            ("dance", json!({}), "'dance' is unknown to this server"),
            ("dance", json!({}), "it knows double, nothing"),
        ] {
            let error = ask(verb, arguments).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
