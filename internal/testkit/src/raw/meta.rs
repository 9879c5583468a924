//! Metadata context options.

use super::client::RawClient;
use super::codes::{Opt, Rep};
use super::options::{OptionError, OptionReply};

/// A metadata context as the server named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its id in `BLOCK_STATUS` replies of this connection.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
pub fn meta_data(export: impl AsRef<[u8]>, queries: &[&str]) -> Vec<u8> {
    let export = export.as_ref();
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

impl RawClient {
    /// `LIST_META_CONTEXT` (S-OPT-LM-01, S-OPT-LM-08).
    #[track_caller]
    pub fn list_meta_context(
        &mut self,
        export: impl AsRef<[u8]>,
        queries: &[&str],
    ) -> Result<Vec<Context>, OptionError> {
        let replies = self.option(Opt::LIST_META_CONTEXT, &meta_data(export, queries))?;
        let contexts = self.parse_contexts(&replies);
        for context in contexts.iter().filter(|context| context.id != 0) {
            self.remark(format!("S-OPT-LM-08: id in a listed context: {context:?}"));
        }
        Ok(contexts)
    }

    /// `SET_META_CONTEXT`: replaces the selection, also when it fails (S-OPT-SM-01, S-OPT-SM-04).
    #[track_caller]
    pub fn set_meta_context(
        &mut self,
        export: impl AsRef<[u8]>,
        queries: &[&str],
    ) -> Result<Vec<Context>, OptionError> {
        self.selection = None;
        let replies = self.option(Opt::SET_META_CONTEXT, &meta_data(&export, queries))?;
        let contexts = self.parse_contexts(&replies);
        for (at, context) in contexts.iter().enumerate() {
            let clash = contexts[..at].iter().find(|other| other.id == context.id);
            assert_eq!(clash, None, "S-OPT-SM-04: ids are unique, {context:?} repeats one");
        }
        self.selection = Some((export.as_ref().to_vec(), contexts.clone()));
        Ok(contexts)
    }

    /// The contexts that are selected for the export in use.
    pub fn contexts(&self) -> &[Context] {
        self.selection.as_ref().map_or(&[], |(_, contexts)| contexts)
    }

    #[track_caller]
    fn parse_contexts(&mut self, replies: &[OptionReply]) -> Vec<Context> {
        let mut contexts: Vec<Context> = Vec::new();
        for reply in replies {
            assert_eq!(reply.kind, Rep::META_CONTEXT, "S-OPT-LM-01: reply to a context option");
            let (id, name) = reply.data.split_first_chunk().expect("a context has an id");
            let name = self.string(name, "context name");
            check_context_name(&name);
            assert!(
                contexts.iter().all(|other| other.name != name),
                "S-OPT-SM-09: {name} came twice"
            );
            contexts.push(Context { id: u32::from_be_bytes(*id), name });
        }
        contexts
    }
}

/// Namespace, colon, leaf, with a registered namespace (S-META-01, S-META-02, S-OPT-LM-11).
#[track_caller]
fn check_context_name(name: &str) {
    let Some((namespace, _leaf)) = name.split_once(':') else {
        panic!("S-META-01: context {name:?} has no colon");
    };
    assert!(
        !namespace.is_empty() && namespace.chars().all(|c| !c.is_whitespace() && !c.is_control()),
        "S-META-01: namespace of {name:?}"
    );
    let registered = ["base", "nbd-server", "qemu"].contains(&namespace);
    assert!(registered || namespace.starts_with("x-"), "S-META-02: namespace of {name:?}");
}
