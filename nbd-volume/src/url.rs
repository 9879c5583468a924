//! How places in stores are written in URLs, and how URLs are shown.

use object_store::path::Path;

/// What is wrong with the parts of a path, if that has a remedy of its own.
pub(crate) fn misnamed(path: &str) -> Option<String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() {
        return None;
    }
    path.split('/').find_map(|part| match &*decoded(part) {
        "" => Some("has '//' in its path, where stores have one '/': write one".to_owned()),
        name @ ("." | "..") => Some(format!(
            "has '{name}' in its path, which names nothing in a store: write the path without it, or choose another name"
        )),
        _ => None,
    })
}

/// A part of a URL as it is meant. What is no escape is left as it is, and what is no UTF-8 then is replaced.
pub(crate) fn decoded(part: &str) -> String {
    let mut bytes = part.bytes();
    let mut meant = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        let mut after = bytes.clone();
        let mut digit = || char::from(after.next()?).to_digit(16);
        match (byte == b'%').then(|| Some((digit()?, digit()?))).flatten() {
            Some((high, low)) => {
                meant.push(u8::try_from(high << 4 | low).unwrap_or_default());
                bytes = after;
            }
            None => meant.push(byte),
        }
    }
    String::from_utf8_lossy(&meant).into_owned()
}

/// The path as it is written in a URL: what has a meaning there, in commands or for terminals is encoded.
pub(crate) fn url_path(path: &Path) -> String {
    let mut encoded = String::new();
    for byte in path.as_ref().bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' | b'=' | b'+' | b',' | b':' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The URL as it may be shown: what stands before an `@`, or behind a `?`, may be a secret.
pub(crate) fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').map_or((rest, None), |(h, p)| (h, Some(p)));
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            match path {
                Some(path) => format!("{scheme}://{host}/{path}"),
                None => format!("{scheme}://{host}"),
            }
        }
        None => url.to_owned(),
    }
}
