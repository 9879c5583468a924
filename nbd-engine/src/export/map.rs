//! A fixed set of exports.

use std::collections::BTreeMap;

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
    /// Where each is, by its name.
    by_name: BTreeMap<String, usize>,
}

impl ExportMap {
    /// No exports yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: Vec::new(), by_name: BTreeMap::new() }
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
        let index = self.by_name.get(entry.name()).copied();
        match index.and_then(|index| self.entries.get_mut(index)) {
            Some(earlier) => *earlier = entry,
            None => {
                self.by_name.insert(entry.name().to_owned(), self.entries.len());
                self.entries.push(entry);
            }
        }
        self
    }

    /// The export of that name; the default one for an empty name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ExportEntry> {
        let exact = self.by_name.get(name).and_then(|index| self.entries.get(*index));
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

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;
    use crate::export::Memory;

    #[test]
    fn each_name_finds_the_last_export_that_was_added_under_it_in_the_place_of_the_first() {
        cases(100, |random| {
            let mut map = ExportMap::new();
            let mut expected: Vec<(String, u64)> = Vec::new();
            for size in 1..=random.below(40) {
                let name = ["", "a", "b", "c", "aa"][random.below(5) as usize].to_owned();
                map = map.with(name.as_str(), Memory::new(size).unwrap()).unwrap();
                match expected.iter_mut().find(|(earlier, _)| *earlier == name) {
                    Some((_, earlier)) => *earlier = size,
                    None => expected.push((name, size)),
                }
            }
            let found =
                map.entries().iter().map(|one| (one.name().to_owned(), one.export().size()));
            assert_eq!(Vec::from_iter(found), expected);
            for name in ["", "a", "b", "c", "aa", "d"] {
                let by_name = expected.iter().find(|(one, _)| one == name);
                let by_name = by_name.or(expected.first().filter(|_| name.is_empty()));
                let size = map.get(name).map(|entry| entry.export().size());
                assert_eq!(size, by_name.map(|(_, size)| *size), "{name:?}");
            }
        });
    }
}
