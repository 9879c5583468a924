//! A fixed set of exports.

use super::{
    ClientInfo, ExportEntry, Exports, IntoExport, InvalidName, ListedExport, Lookup, Refusal,
};

/// A fixed set of exports, in the order in which they were added.
///
/// The empty name selects the export that was added under it; without one, the first that was added.
///
/// ```
/// use nbd_engine::export::{ExportMap, Memory};
///
/// let exports = ExportMap::new()
///     .with("disk", Memory::new(1 << 20)?)?
///     .with("scratch", Memory::new(1 << 30)?)?;
/// assert_eq!(exports.get("").unwrap().name(), "disk");
/// assert!(exports.get("other").is_none());
/// assert!(exports.with("x".repeat(5000), Memory::new(1)?).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ExportMap {
    entries: Vec<ExportEntry>,
}

impl ExportMap {
    /// No exports yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// Adds an export of any kind: one that may block, one whose work is a future, or an
    /// [`AnyExport`](super::AnyExport). An export that was added under the same name before is replaced.
    ///
    /// # Errors
    /// When clients could neither see nor enter an export of that name, see [`InvalidName`].
    pub fn with<K>(
        self,
        name: impl Into<String>,
        export: impl IntoExport<K>,
    ) -> Result<Self, InvalidName> {
        Ok(self.with_entry(ExportEntry::new(name, export)?))
    }

    /// Adds an export with what its entry has besides a name. An export that was added under the same name before is
    /// replaced.
    #[must_use]
    pub fn with_entry(mut self, entry: ExportEntry) -> Self {
        match self.entries.iter_mut().find(|earlier| earlier.name() == entry.name()) {
            Some(earlier) => *earlier = entry,
            None => self.entries.push(entry),
        }
        self
    }

    /// The export of that name; the default one for an empty name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ExportEntry> {
        let exact = self.entries.iter().find(|entry| entry.name() == name);
        exact.or_else(|| self.entries.first().filter(|_| name.is_empty()))
    }

    /// All exports, in the order in which they were added.
    #[must_use]
    pub fn entries(&self) -> &[ExportEntry] {
        &self.entries
    }
}

impl Exports for ExportMap {
    async fn list(&self, client: &ClientInfo) -> Result<Vec<ListedExport>, Refusal> {
        let secure = client.tls.is_some();
        let visible = self.entries.iter().filter(|entry| secure || !entry.is_tls_required());
        Ok(visible.map(ListedExport::from).collect())
    }

    async fn find(&self, lookup: &Lookup<'_>) -> Result<ExportEntry, Refusal> {
        self.get(lookup.name).cloned().ok_or(Refusal::Unknown)
    }
}
