//! What errors of libraries say, in words for people: on one line, without repetitions and without secrets.

use std::borrow::Cow;

/// Where credentials of buckets come from.
pub(super) const CREDENTIALS: &str = "credentials are taken from the environment, such as AWS_ACCESS_KEY_ID, \
    GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_ACCOUNT_KEY";

/// The services that clouds have for their instances' credentials. The clients of the stores ask them when there are none
/// in the environment, and an error of theirs says nothing to people whose machine is no such instance.
const INSTANCE_SERVICES: [&str; 2] = ["//169.254.169.254/", "//metadata.google.internal/"];

/// An error with those below it, without the repetitions that libraries make, on one line.
pub(crate) fn chain(error: &(dyn core::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        below = error.source();
    }
    let line = without_retries(&one_line(&text));
    if let Some(text) = of_connecting(&line) {
        return text;
    }
    match INSTANCE_SERVICES.iter().any(|service| line.contains(service)) {
        true => format!("{line}; this machine is given no credentials: {CREDENTIALS}"),
        false => line,
    }
}

/// The text with the paths of a local directory's objects from the root on: to SlateDB the store begins there.
pub(crate) fn rooted(url: &str, text: String) -> String {
    match url.strip_prefix("file:///").map(|path| path.trim_end_matches('/')) {
        Some(path) if !path.is_empty() => text.replace(&format!(" {path}/"), &format!(" /{path}/")),
        _ => text,
    }
}

/// The text without the client library's account of how it has repeated a request, which says nothing of how long anything
/// was tried here.
fn without_retries(line: &str) -> String {
    const LAST: &str = "retry_timeout: ";
    let cut = line.find(LAST).and_then(|last| {
        let start = line[..last].rfind(" in ")?;
        let end = last + line[last..].find(" - ")?;
        Some((start, end + " - ".len()))
    });
    match cut {
        Some((start, end)) => format!("{}: {}", &line[..start], &line[end..]),
        None => line.to_owned(),
    }
}

/// What is the matter with a server to which there is no connection, in words. None for other failures, and for the
/// services that clouds have for their instances.
fn of_connecting(line: &str) -> Option<String> {
    if INSTANCE_SERVICES.iter().any(|service| line.contains(service)) {
        return None;
    }
    let start = ["https://", "http://"].iter().filter_map(|scheme| line.find(scheme)).min()?;
    let authority = line[start..].find("://")? + "://".len();
    let ends = |c: char| c == '/' || c == ')' || c == ',' || c.is_whitespace();
    let end = line[start + authority..].find(ends).unwrap_or(line.len() - start - authority);
    let server = line[start..start + authority + end].trim_end_matches(':');
    let variable = match line.contains("Generic S3 error") {
        true => " (AWS_ENDPOINT_URL)",
        false => "",
    };
    let is = |texts: &[&str]| texts.iter().any(|text| line.contains(text));
    if is(&["Connection refused"]) {
        Some(format!(
            "{server} refuses the connection: is the server running, and is the address{variable} right?"
        ))
    } else if is(&["dns error", "failed to lookup address"]) {
        Some(format!(
            "the host of {server} has no address: is its name{variable} right, and does this machine reach its DNS?"
        ))
    } else if is(&["Network is unreachable", "No route to host"]) {
        Some(format!(
            "there is no route to {server}: is the address{variable} right, and is this machine's network up?"
        ))
    } else {
        None
    }
}

/// The text without line breaks, of at most 600 characters: some stores answer with a page of HTML.
fn one_line(text: &str) -> String {
    const MAX: usize = 600;
    let mut line = String::new();
    for word in text.split_whitespace() {
        if line.len() + word.len() > MAX {
            line.push_str(" ...");
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        // What a server sends may be meant for a terminal.
        let word = without_secrets(word);
        line.extend(
            word.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }),
        );
    }
    line
}

/// The word, if it is a URL, without its query and its user, which may be secrets: a URL that is signed can be used by
/// anybody.
fn without_secrets(word: &str) -> Cow<'_, str> {
    let Some(authority) = word.find("://").map(|start| start + "://".len()) else {
        return Cow::Borrowed(word);
    };
    let (before, rest) = word.split_at(authority);
    let query = rest.find('?').unwrap_or(rest.len());
    let (path, query) = rest.split_at(query);
    let host_end = path.find('/').unwrap_or(path.len());
    let host = path[..host_end].rfind('@').map_or(0, |at| at + 1);
    if query.is_empty() && host == 0 {
        return Cow::Borrowed(word);
    }
    let end = query.trim_end_matches([')', ',', ':', ';', '\'', '"', '>']).len();
    let mark = if end == 0 { "" } else { "?..." };
    Cow::Owned(format!("{before}{}{mark}{}", &path[host..], &query[end..]))
}

#[cfg(test)]
mod tests {
    use slatedb::object_store;

    use super::*;

    #[test]
    fn secrets_of_urls_are_shown_nowhere() {
        assert_eq!(
            one_line("for url (https://host/disk?key=secret&x=//?): 403, see http://a/b c?d"),
            "for url (https://host/disk?...): 403, see http://a/b c?d"
        );
        assert_eq!(
            one_line("to (https://user:secret@host/a@b), https://secret@h?secret, ftp://secret@h"),
            "to (https://host/a@b), https://h?..., ftp://h"
        );
    }

    #[test]
    fn a_text_is_one_short_line() {
        assert_eq!(one_line("a\n b\r\n\tc"), "a b c");
        assert_eq!(one_line("\u{1b}[2J\u{9b}x"), "\u{fffd}[2J\u{fffd}x");
        let long = one_line(&"word ".repeat(1000));
        assert!(long.len() < 610 && long.ends_with(" ..."), "{long}");
    }

    #[test]
    fn who_has_no_credentials_is_told_where_they_come_from() {
        let asked = "error sending request for url (http://169.254.169.254/latest/api/token)";
        let outer =
            object_store::Error::Generic { store: "S3", source: Box::from(asked.to_owned()) };
        assert!(chain(&outer).contains("AWS_ACCESS_KEY_ID"), "{}", chain(&outer));
    }

    #[test]
    fn a_server_to_which_there_is_no_connection_is_reported_in_words() {
        let failure = |text: &str| {
            let store = if text.contains("bucket") { "S3" } else { "HTTP" };
            chain(&object_store::Error::Generic { store, source: Box::from(text.to_owned()) })
        };
        let tried = "in 312.6ms, after 2 retries, max_retries: 2, retry_timeout: 20s  - HTTP error: error sending request";
        assert_eq!(
            failure(&format!(
                "Error performing GET http://127.0.0.1:9999/d.raw {tried}: tcp connect error: Connection refused (os error 111)"
            )),
            "http://127.0.0.1:9999 refuses the connection: is the server running, and is the address right?"
        );
        let text = failure(&format!(
            "Error performing PUT http://s3.invalid/bucket/v {tried}: dns error: failed to lookup address information"
        ));
        assert!(
            text.contains("host of http://s3.invalid has") && text.contains("AWS_ENDPOINT_URL")
        );
        assert_eq!(
            failure(&format!("Error performing GET https://host/d.raw {tried}: reset")),
            "Generic HTTP error: Error performing GET https://host/d.raw: HTTP error: error sending request: reset"
        );
    }

    #[test]
    fn a_chain_repeats_nothing() {
        let inner = std::io::Error::other("the disk is on fire");
        let outer = object_store::Error::Generic { store: "S3", source: Box::new(inner) };
        assert_eq!(chain(&outer), "Generic S3 error: the disk is on fire");
    }

    #[test]
    fn objects_of_a_directory_have_paths_from_the_root_on() {
        let text = "checksum mismatch in srv/vols/v/compacted/1.sst";
        let rooted = |url| rooted(url, text.to_owned());
        assert_eq!(
            rooted("file:///srv/vols/v"),
            "checksum mismatch in /srv/vols/v/compacted/1.sst"
        );
        assert_eq!(rooted("file:///srv/vols/v/"), rooted("file:///srv/vols/v"));
        assert_eq!(rooted("s3://srv/vols/v"), text);
        assert_eq!(rooted("file:///"), text);
    }
}
