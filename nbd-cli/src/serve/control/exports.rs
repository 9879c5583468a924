//! The verbs that change what is served: the configuration file is read again, exports are added and removed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::config::Export;
use super::super::reload::Reload;
use super::verbs::{NoArguments, Verbs};
use crate::exit::Failure;

/// Reads the configuration file again. Gives the names of what changed, as the others do.
pub(crate) const RELOAD: &str = "reload";
/// Serves one more export: the arguments are the keys of an `[[export]]`, with absolute paths.
pub(crate) const ADD: &str = "export-add";
/// Serves an export no longer, and disconnects its clients in order.
pub(crate) const REMOVE: &str = "export-remove";

/// The export to remove.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Name {
    /// Its name.
    pub(crate) name: String,
}

/// Adds the verbs.
pub(in crate::serve) fn exports(reload: &Arc<Reload>, verbs: Verbs) -> Verbs {
    let [again, add, remove] = [(); 3].map(|()| Arc::clone(reload));
    let text = |failure: Failure| match failure {
        Failure::Config(faults) => {
            let headings = faults.into_iter().map(|fault| fault.heading);
            headings.collect::<Vec<_>>().join("; ")
        }
        failure => failure.text().to_owned(),
    };
    verbs
        .with(RELOAD, move |NoArguments {}| again.requested().map_err(text))
        .with(ADD, move |export: Export| add.add(export).map_err(text))
        .with(REMOVE, move |Name { name }| remove.remove(&name).map_err(text))
}
