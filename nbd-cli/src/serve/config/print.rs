//! `--print-config`: a configuration as a file that means the same.

use std::path::{Path, absolute};

use super::Config;
use crate::exit::Failure;
use crate::output::quoted;

/// The file. Its paths are absolute, so that they mean the same wherever it is kept.
///
/// # Errors
/// When a path can't be written in TOML, since it is not UTF-8.
pub(crate) fn print(config: &Config) -> Result<String, Failure> {
    let here = absolute(Path::new(".")).map_err(|error| {
        Failure::failed(format!(
            "cannot find the current folder, which paths begin at: {error}; change to one that is there"
        ))
    })?;
    let mut config = config.clone();
    config.resolve(&here);
    if let Some(path) = config.path_beyond_utf8() {
        let shown = quoted(path.as_os_str());
        return Err(Failure::usage(format!("{shown} is not UTF-8: a file cannot name it")));
    }
    toml::to_string(&config)
        .map_err(|error| Failure::failed(format!("cannot write the configuration: {error}")))
}
