//! The files of a directory as exports.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_engine::export::{
    self, AnyExport, ClientInfo, Directory, ExportEntry, Exports, FileId, ListedExport, Lookup,
    Purpose, Refusal,
};

use super::backend;
use super::config::{Config, Export};
use super::denied;
use super::layers::Base;
use crate::exit::Failure;
use crate::output::{quoted, shell_path};

/// A directory that is open. Its files are opened as clients ask for them.
#[derive(Debug)]
pub(super) struct Folder {
    directory: Directory,
    in_use: Arc<InUse>,
}

/// The files that clients have entered, by the names that these know, and how many clients each has.
#[derive(Debug, Default)]
struct InUse(Mutex<HashMap<String, (usize, AnyExport)>>);

impl Folder {
    /// The directory of that path, whose files get the layers of `export`.
    pub(super) fn open(path: &Path, export: &Export, config: &Config) -> Result<Self, Failure> {
        let directory = Directory::open(path).map_err(|error| {
            let shown = quoted(path.as_os_str());
            let remedy = match error.kind() {
                ErrorKind::NotFound => format!("; create it first: mkdir -p {}", shell_path(path)),
                ErrorKind::NotADirectory => {
                    let (word, key) = (
                        "leave out dir: to serve a file",
                        "to serve a file, name it by file instead of directory",
                    );
                    format!("; {}", config.source.word(word, key))
                }
                kind => denied::why(kind),
            };
            Failure::failed(format!("cannot open the directory {shown}: {error}{remedy}"))
        })?;
        let (export, source) = (export.clone(), config.source.clone());
        let folder = path.to_owned();
        let directory = directory.read_only(backend::is_only_read(&export));
        let directory = directory.with_layers(move |file, name| {
            let word = folder.join(name).display().to_string();
            let disk = backend::layered(file, Base::default(), &export, &source, &word);
            // An overlay of one is in memory.
            let (disk, _) = disk.map_err(|failure| failure.text().to_owned())?;
            Ok(Arc::new(disk) as Arc<dyn export::Export>)
        });
        Ok(Self { directory, in_use: Arc::default() })
    }

    /// The files by the names that clients see.
    ///
    /// # Errors
    /// When the directory can't be read: a part of a list would pass for all of it.
    pub(super) async fn list(
        &self,
        export: &Export,
        client: &ClientInfo,
    ) -> Result<Vec<ListedExport>, Refusal> {
        if export.tls_only && client.tls.is_none() {
            return Ok(Vec::new());
        }
        let listed = self.directory.list(client).await?;
        let description = export.description.as_deref().unwrap_or_default();
        let full = listed
            .iter()
            .filter_map(|file| ListedExport::new(full_name(export, file.name()), description).ok());
        Ok(full.collect())
    }

    /// The file that a client asks for, if the name is one of a file of this directory.
    ///
    /// # Errors
    /// What the directory refuses it by.
    pub(super) async fn find(
        &self,
        export: &Export,
        lookup: &Lookup<'_>,
    ) -> Result<ExportEntry, Refusal> {
        let Some(name) = file_name(export, lookup.name) else { return Err(Refusal::Unknown) };
        let within = Lookup::new(name, lookup.purpose, lookup.client);
        let entry = self.directory.find(&within).await?.with_name(lookup.name)?;
        let invalid = |failure: Failure| Refusal::policy(failure.text().to_owned());
        let entry = backend::with_settings(entry, export).map_err(invalid)?;
        Ok(match lookup.purpose {
            Purpose::Enter => InUse::counted(&self.in_use, entry),
            _ => entry,
        })
    }

    /// Leaves these files out, since they are exported by names of their own.
    pub(super) fn leave_out(&self, files: impl IntoIterator<Item = FileId>) {
        self.directory.leave_out(files);
    }

    /// Disconnects all clients of its files in order.
    pub(super) fn withdraw(&self) {
        self.directory.withdraw();
    }

    /// The files that clients use, with their sizes.
    pub(super) fn in_use(&self) -> Vec<(String, u64)> {
        let files = self.in_use.files();
        let mut sizes: Vec<_> =
            files.iter().map(|(name, (_, export))| (name.clone(), export.size())).collect();
        sizes.sort_unstable();
        sizes
    }
}

impl InUse {
    fn files(&self) -> MutexGuard<'_, HashMap<String, (usize, AnyExport)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the client that enters by the entry, until it leaves.
    fn counted(files: &Arc<Self>, entry: ExportEntry) -> ExportEntry {
        let (entered, left) = (Arc::clone(files), Arc::clone(files));
        let (name, export) = (entry.name().to_owned(), entry.export().clone());
        let gone = name.clone();
        entry
            .on_enter(move |_| {
                let mut files = entered.files();
                let file = files.entry(name.clone()).or_insert_with(|| (0, export.clone()));
                // A name may be another file's by now.
                *file = (file.0 + 1, export.clone());
            })
            .on_close(move |_, _| {
                let mut files = left.files();
                if let Some((clients, _)) = files.get_mut(&gone) {
                    *clients = clients.saturating_sub(1);
                    if *clients == 0 {
                        files.remove(&gone);
                    }
                }
            })
    }
}

/// What clients call a file of the directory: the directory's own name, if it has one, is a prefix.
fn full_name(export: &Export, file: &str) -> String {
    match &*export.name {
        "" => file.to_owned(),
        prefix => format!("{prefix}/{file}"),
    }
}

/// The name in the directory of a file that clients call so.
fn file_name<'a>(export: &Export, name: &'a str) -> Option<&'a str> {
    match &*export.name {
        "" => Some(name),
        prefix => name.strip_prefix(prefix)?.strip_prefix('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Backend;
    use super::*;

    #[test]
    fn the_name_of_a_directory_is_a_prefix_of_those_of_its_files() {
        for (prefix, file, full) in [("", "a", "a"), ("x", "a", "x/a"), ("x/y", "a b", "x/y/a b")] {
            let export = Export::new(prefix, Backend::Directory("/".as_ref()));
            assert_eq!(full_name(&export, file), full);
            assert_eq!(file_name(&export, full), Some(file));
        }
        let export = Export::new("x", Backend::Directory("/".as_ref()));
        for other in ["", "x", "xa", "y/a", "X/a"] {
            assert_eq!(file_name(&export, other), None);
        }
    }
}
