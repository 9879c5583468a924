//! Which exports a server has, by name.

use std::sync::Arc;

use super::{AsyncExport, Export};

/// An export of either kind, shared by all connections.
#[derive(Clone)]
pub enum Handle {
    /// One that may block.
    Blocking(Arc<dyn Export>),
    /// One whose work is a future.
    Async(Arc<dyn AsyncExport>),
}

impl Handle {
    /// Shares an export that may block.
    pub fn new(export: impl Export) -> Self {
        Self::Blocking(Arc::new(export))
    }

    /// Shares an export whose work is a future.
    pub fn new_async(export: impl AsyncExport) -> Self {
        Self::Async(Arc::new(export))
    }
}

impl core::fmt::Debug for Handle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Blocking(_) => "Handle::Blocking",
            Self::Async(_) => "Handle::Async",
        })
    }
}

impl<E: Export> From<Arc<E>> for Handle {
    fn from(export: Arc<E>) -> Self {
        Self::Blocking(export)
    }
}

/// An export that was found for a client.
#[derive(Clone, Debug)]
pub struct Found {
    /// The name it goes by; not always the one that was asked for.
    pub name: String,
    /// A text for people; the export's own if there is none.
    pub description: Option<String>,
    /// The export.
    pub export: Handle,
}

/// Finds exports. Implement it to have exports come and go, or to decide by name; [`ExportMap`] is for a fixed set.
pub trait Exports: Send + Sync + 'static {
    /// Names and descriptions of what is to be listed.
    fn list(&self) -> Vec<(String, String)>;

    /// The export of that name; an empty name asks for the default one. `None` when there is none. Called on the
    /// connection's own thread or task, so it should not take long.
    fn find(&self, name: &str) -> Option<Found>;
}

/// A fixed set of exports, in the order in which they were added.
///
/// The empty name selects the export that was added under it; without one, the first that was added.
///
/// ```
/// use nbd_engine::export::{ExportMap, Exports, Memory};
/// let exports = ExportMap::new()
///     .with("disk", Memory::new(1 << 20)?)
///     .with("scratch", Memory::new(1 << 30)?);
/// assert_eq!(exports.find("").unwrap().name, "disk");
/// assert!(exports.find("other").is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ExportMap {
    exports: Vec<Found>,
}

impl ExportMap {
    /// No exports yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { exports: Vec::new() }
    }

    /// Adds an export that may block.
    #[must_use]
    pub fn with(self, name: impl Into<String>, export: impl Export) -> Self {
        self.with_handle(name, None, Handle::new(export))
    }

    /// Adds an export of either kind with a description that takes the place of its own. An export that was added
    /// under the same name before is replaced.
    #[must_use]
    pub fn with_handle(
        mut self,
        name: impl Into<String>,
        description: Option<String>,
        export: Handle,
    ) -> Self {
        let found = Found { name: name.into(), description, export };
        match self.exports.iter_mut().find(|earlier| earlier.name == found.name) {
            Some(earlier) => *earlier = found,
            None => self.exports.push(found),
        }
        self
    }
}

impl Exports for ExportMap {
    fn list(&self) -> Vec<(String, String)> {
        let describe = |found: &Found| {
            let own = || match &found.export {
                Handle::Blocking(export) => export.description(),
                Handle::Async(export) => export.description(),
            };
            (found.name.clone(), found.description.clone().or_else(own).unwrap_or_default())
        };
        self.exports.iter().map(describe).collect()
    }

    fn find(&self, name: &str) -> Option<Found> {
        let exact = self.exports.iter().find(|found| found.name == name);
        exact.or_else(|| self.exports.first().filter(|_| name.is_empty())).cloned()
    }
}
