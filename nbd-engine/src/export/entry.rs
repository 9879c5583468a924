//! An export under a name.

use std::fmt;
use std::sync::Arc;

use nbd_proto::wire::MAX_STRING;

use super::{AnyExport, ClientInfo, CloseReason, IntoExport, Withdrawal};

/// An export under a name, with a description: what a look-up finds.
///
/// ```
/// use nbd_engine::export::{ExportEntry, Memory};
///
/// let entry = ExportEntry::new("disk", Memory::new(1 << 20)?)?.with_description("scratch space")?;
/// assert_eq!((entry.name(), entry.export().size()), ("disk", 1 << 20));
/// assert!(ExportEntry::new("nul\0", Memory::new(1)?).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ExportEntry {
    name: String,
    description: Option<String>,
    export: AnyExport,
    tls_required: bool,
    resize_denied: bool,
    multi_conn_denied: bool,
    withdrawal: Option<Withdrawal>,
    on_enter: Option<Arc<OnEnter>>,
    on_close: Option<Arc<OnClose>>,
}

type OnEnter = dyn Fn(&ClientInfo) + Send + Sync;
type OnClose = dyn Fn(&ClientInfo, &CloseReason) + Send + Sync;

impl ExportEntry {
    /// An export under a name, which need not be the one that a client asked for: it is the canonical one. The empty
    /// name is that of the default export.
    ///
    /// # Errors
    /// When the name can't go over the wire, see [`InvalidName`].
    pub fn new<K>(
        name: impl Into<String>,
        export: impl IntoExport<K>,
    ) -> Result<Self, InvalidName> {
        let name = checked(name)?;
        let export = export.into_export();
        Ok(Self {
            name,
            description: None,
            export,
            tls_required: false,
            resize_denied: false,
            multi_conn_denied: false,
            withdrawal: None,
            on_enter: None,
            on_close: None,
        })
    }

    /// The same under another name.
    ///
    /// # Errors
    /// When the name can't go over the wire, see [`InvalidName`].
    pub fn with_name(mut self, name: impl Into<String>) -> Result<Self, InvalidName> {
        self.name = checked(name)?;
        Ok(self)
    }

    /// A text for people, in place of the export's own [description](super::Export::description).
    ///
    /// # Errors
    /// When the text can't go over the wire: the rules are those for names.
    pub fn with_description(mut self, description: impl Into<String>) -> Result<Self, InvalidName> {
        self.description = Some(checked(description)?);
        Ok(self)
    }

    /// Refuses the export to clients outside of TLS. An [`ExportMap`](super::ExportMap) also leaves it out of their
    /// lists.
    ///
    /// Inside are those that have upgraded by `NBD_OPT_STARTTLS`, and those on a stream of which the embedder
    /// [says so](super::Peer::with_tls).
    #[must_use]
    pub const fn with_tls_required(mut self) -> Self {
        self.tls_required = true;
        self
    }

    /// Whether clients have to upgrade to TLS for this export.
    #[must_use]
    pub const fn is_tls_required(&self) -> bool {
        self.tls_required
    }

    /// Refuses to resize the export, even if it [can be resized](super::CanResize) and the
    /// [server](crate::server::ServerConfig::with_resize) lets clients resize exports.
    #[must_use]
    pub const fn without_resize(mut self) -> Self {
        self.resize_denied = true;
        self
    }

    /// Whether clients may resize the export, if it can be resized.
    #[must_use]
    pub const fn is_resize_allowed(&self) -> bool {
        !self.resize_denied
    }

    /// Advertises no `NBD_FLAG_CAN_MULTI_CONN`, even if the export [allows for it](super::Export::multi_conn): clients
    /// that keep to that use one connection.
    ///
    /// An export that a look-up makes anew belongs to one connection. A client with several, as most that copy disks have,
    /// would have a disk behind each, and its data would be scattered over them without an error.
    ///
    /// ```
    /// use nbd_engine::export::{ExportEntry, Memory};
    ///
    /// let entry = ExportEntry::new("scratch", Memory::new(1 << 20)?)?.without_multi_conn();
    /// assert!(!entry.is_multi_conn_allowed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn without_multi_conn(mut self) -> Self {
        self.multi_conn_denied = true;
        self
    }

    /// Whether several connections of a client may share the export, if it allows for that.
    #[must_use]
    pub const fn is_multi_conn_allowed(&self) -> bool {
        !self.multi_conn_denied
    }

    /// Has clients that enter by this entry disconnected when the export is [withdrawn](Withdrawal).
    #[must_use]
    pub fn with_withdrawal(mut self, withdrawal: &Withdrawal) -> Self {
        self.withdrawal = Some(withdrawal.clone());
        self
    }

    pub(crate) const fn withdrawal(&self) -> Option<&Withdrawal> {
        self.withdrawal.as_ref()
    }

    /// Has `on_enter` called each time that a client enters the export by this entry, before its first request. A
    /// client that only asks about the export, however often, does not enter it.
    ///
    /// For an export of one's own, [`Export::client_entered`](super::Export::client_entered) does the same. Both are
    /// called on the connection's thread or task and must not block. One that panics is ignored.
    #[must_use]
    pub fn on_enter(mut self, on_enter: impl Fn(&ClientInfo) + Send + Sync + 'static) -> Self {
        self.on_enter = Some(Arc::new(on_enter));
        self
    }

    /// Has `on_close` called each time that a client that entered by this entry leaves: exactly once for each time that
    /// `on_enter` was due, with the reason, after the last of the client's requests has ended. What it captures lives
    /// until then, so that it can hold the state of a connection: give each look-up an entry of its own.
    ///
    /// For an export of one's own, [`Export::client_left`](super::Export::client_left) does the same. Both are called
    /// on the connection's thread or task, or on the worker thread that carried out the last request, and must not
    /// block. One that panics is ignored.
    ///
    /// A worker thread belongs to no async runtime. To clean up by a future, take a handle of the runtime beforehand and
    /// capture it, such as tokio's `Handle::current()` in [`Exports::find`](super::Exports::find), and spawn the future
    /// on that.
    #[must_use]
    pub fn on_close(
        mut self,
        on_close: impl Fn(&ClientInfo, &CloseReason) + Send + Sync + 'static,
    ) -> Self {
        self.on_close = Some(Arc::new(on_close));
        self
    }

    /// The name that the export goes by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text for people: the entry's, else the export's own, if there is any.
    #[must_use]
    pub fn description(&self) -> Option<String> {
        self.own_description().or_else(|| self.export.facts().description)
    }

    pub(crate) fn own_description(&self) -> Option<String> {
        self.description.clone()
    }

    /// The export.
    #[must_use]
    pub const fn export(&self) -> &AnyExport {
        &self.export
    }

    pub(crate) fn client_entered(&self, client: &ClientInfo) {
        self.export.client_entered(client);
        if let Some(on_enter) = &self.on_enter {
            on_enter(client);
        }
    }

    pub(crate) fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        self.export.client_left(client, reason);
        if let Some(on_close) = &self.on_close {
            on_close(client, reason);
        }
    }
}

impl fmt::Debug for ExportEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportEntry")
            .field("name", &self.name)
            .field("description", &self.description)
            .field("export", &self.export)
            .finish_non_exhaustive()
    }
}

/// An export as clients see it listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    name: String,
    description: String,
}

impl ListedExport {
    /// A name and a text for people, which may be empty.
    ///
    /// # Errors
    /// When either can't go over the wire, see [`InvalidName`].
    pub fn new(
        name: impl Into<String>,
        description: impl Into<String>,
    ) -> Result<Self, InvalidName> {
        Ok(Self { name: checked(name)?, description: checked(description)? })
    }

    /// The name to ask for the export by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text for people; empty for none.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }
}

impl From<&ExportEntry> for ListedExport {
    /// The entry with its description, unless that is one of the export's own that can't go over the wire.
    fn from(entry: &ExportEntry) -> Self {
        let description = entry.description().and_then(|text| checked(text).ok());
        Self { name: entry.name.clone(), description: description.unwrap_or_default() }
    }
}

/// A name or description that can't go over the wire (section "Conventions"): it is longer than 4096 bytes or contains
/// a NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidName {
    /// The beginning of the text, with what can't be printed escaped.
    beginning: String,
    length: usize,
}

/// Gives the text back if it can go over the wire.
fn checked(text: impl Into<String>) -> Result<String, InvalidName> {
    let text = text.into();
    if text.len() <= MAX_STRING && !text.contains('\0') {
        return Ok(text);
    }
    let beginning = text.chars().take(40).flat_map(char::escape_debug).collect();
    Err(InvalidName { beginning, length: text.len() })
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { beginning, length } = self;
        if *length > MAX_STRING {
            write!(
                f,
                "'{beginning}...' has {length} bytes; names and descriptions of exports have at \
                 most {MAX_STRING}"
            )
        } else {
            write!(f, "'{beginning}' has a NUL; names and descriptions of exports have none")
        }
    }
}

impl core::error::Error for InvalidName {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Memory;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_the_names_that_the_protocol_allows_are_taken(
            text in prop_oneof!["\\PC{0,40}", "[a\0]{0,9}", "[aü]{4090,4100}"],
        ) {
            let valid = nbd_proto::wire::is_valid_string(text.as_bytes());
            let disk = || Memory::new(1).unwrap();
            let entry = ExportEntry::new(text.clone(), disk());
            prop_assert_eq!(entry.is_ok(), valid);
            let renamed = ExportEntry::new("", disk()).unwrap().with_name(text.clone());
            prop_assert_eq!(renamed.map(|entry| entry.name().to_owned()).ok(), valid.then(|| text.clone()));
            let described = ExportEntry::new("", disk()).unwrap().with_description(text.clone());
            prop_assert_eq!(described.is_ok(), valid);
            prop_assert_eq!(ListedExport::new(text.clone(), "").is_ok(), valid);
            prop_assert_eq!(ListedExport::new("", text).is_ok(), valid);
        }
    }

    #[test]
    fn a_refused_name_is_shown_so_that_a_terminal_survives_it() {
        let refused =
            |name: String| ExportEntry::new(name, Memory::new(1).unwrap()).unwrap_err().to_string();
        assert_eq!(
            refused("a\0\u{1b}".into()),
            r"'a\0\u{1b}' has a NUL; names and descriptions of exports have none"
        );
        assert!(refused("x".repeat(5000)).contains("xxx...' has 5000 bytes"));
    }
}
