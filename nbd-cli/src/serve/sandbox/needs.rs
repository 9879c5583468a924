//! What a server still opens after its start.

use std::path::{Path, PathBuf};

use crate::serve::access;
use crate::serve::backend::is_only_read;
use crate::serve::config::{Address, Backend, Config};
use crate::serve::layers::Layer;
use crate::serve::metrics::MetricsAddress;

/// The files and folders that a server opens, makes or removes while it runs.
#[derive(Debug, Default)]
pub(in crate::serve) struct Needs {
    /// Files, and folders with all that is in them, that are read again: the configuration, certificates, keys, exports by
    /// directory.
    pub(super) read: Vec<PathBuf>,
    /// Folders whose files are opened and written, and all that is in them: those of exports by directory.
    pub(super) write: Vec<PathBuf>,
    /// Files that are open already, of exports and their layers, and whether for writing. They are opened anew when another
    /// key of their export changes.
    pub(super) reopened: Vec<(PathBuf, bool)>,
    /// Folders in which sockets are made and removed.
    pub(super) sockets: Vec<PathBuf>,
}

impl Needs {
    /// What a server of that configuration opens again, and what it binds and removes. `file` is where the configuration
    /// comes from.
    pub(in crate::serve) fn of(config: &Config, file: Option<&Path>) -> Self {
        let mut needs = Self::default();
        if let Some(file) = file {
            needs.read_replaceable(file);
        }
        needs.read_for_tls(config);
        // As long as they are not replaced: what is read of them is also given by number.
        needs.read.extend(access::tables(&config.access).map(Path::to_owned));
        for export in &config.exports {
            let writes = !is_only_read(export);
            match export.backend() {
                Ok(Backend::Directory(path)) => {
                    let files = if writes { &mut needs.write } else { &mut needs.read };
                    files.push(path.to_owned());
                }
                Ok(Backend::File(path)) => needs.reopened.push((path.to_owned(), writes)),
                _ => {}
            }
            let beside = export.layers.iter().filter_map(Layer::path);
            needs.reopened.extend(beside.map(|path| (path.to_owned(), true)));
        }
        let listening = config.listeners.iter().filter_map(|listen| match listen.address() {
            Ok(Address::Unix(path)) => Some(path),
            _ => None,
        });
        let metrics = config.server.metrics.as_ref().and_then(MetricsAddress::path);
        let others = config.server.control.as_deref().into_iter().chain(metrics);
        listening.chain(others).for_each(|path| needs.socket(path));
        needs
    }

    /// Certificates and keys are read again when they have been replaced.
    #[cfg(feature = "tls")]
    fn read_for_tls(&mut self, config: &Config) {
        use nbd_engine::tls::default_server_directory;
        if let Some(keys) = &config.tls.psk {
            self.read_replaceable(keys);
        } else if let Some(folder) = &config.tls.certificates {
            self.read.push(folder.clone());
        } else if config.tls.mode.is_some() {
            self.read.extend(default_server_directory());
        }
    }

    #[cfg(not(feature = "tls"))]
    fn read_for_tls(&mut self, _: &Config) {}

    /// A file that may be replaced by another one of its name: its folder is read.
    pub(in crate::serve) fn read_replaceable(&mut self, path: &Path) {
        self.read.push(folder(path).to_owned());
    }

    /// A socket that is bound after this, and removed at the end.
    pub(in crate::serve) fn socket(&mut self, path: &Path) {
        self.sockets.push(folder(path).to_owned());
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
