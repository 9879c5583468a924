//! What a build without a feature says: which feature is missing, and the command that builds nbd with it.

/// Something that this build lacks.
#[derive(Debug)]
pub(crate) struct Missing {
    /// What it lacks, as messages name it.
    pub(crate) what: &'static str,
    /// The feature of nbd-cli that adds it.
    pub(crate) feature: &'static str,
}

pub(crate) const TLS: Missing = Missing { what: "TLS", feature: "tls" };
#[cfg(feature = "tls")]
pub(crate) const PSK: Missing = Missing { what: "pre-shared keys", feature: "tls-psk" };
pub(crate) const VOLUMES: Missing = Missing { what: "volumes and objects", feature: "volume" };

impl Missing {
    /// The message, without an end: `this nbd was built without WHAT: build it with COMMAND`.
    pub(crate) fn text(&self) -> String {
        let Self { what, feature } = self;
        format!(
            "this nbd was built without {what}: build it, in its source tree, with cargo install --path nbd-cli \
             --features {feature}"
        )
    }

    /// A command line that needs it.
    #[cfg(not(all(feature = "tls", feature = "volume")))]
    pub(crate) fn failure(&self) -> crate::exit::Failure {
        crate::exit::Failure::usage(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_is_a_command_for_this_workspace() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let all = [
            TLS,
            #[cfg(feature = "tls")]
            PSK,
            VOLUMES,
        ];
        for missing in all {
            let text = missing.text();
            let (_, command) = text.split_once("with cargo install --path ").unwrap();
            let [path, option, feature] = command.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{command}");
            };
            assert_eq!(option, "--features");
            let manifest = std::fs::read_to_string(format!("{root}/{path}/Cargo.toml")).unwrap();
            let manifest: toml::Table = manifest.parse().unwrap();
            assert_eq!(manifest["package"]["name"].as_str(), Some("nbd-cli"));
            assert!(manifest["features"].get(feature).is_some(), "there is no feature {feature}");
        }
    }
}
