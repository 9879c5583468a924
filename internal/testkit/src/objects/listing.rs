//! Lists of objects.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::http::{Request, Response};
use super::store::Store;

/// Objects and prefixes in one answer at most.
const PAGE: usize = 1000;

/// Answers `GET /BUCKET?list-type=2`.
pub(super) fn list(store: &Store, bucket: &str, request: &Request) -> Response {
    let parameter = |name: &str| request.query.get(name).map_or("", String::as_str);
    let (prefix, delimiter) = (parameter("prefix"), parameter("delimiter"));
    // What this gives to go on from is the last name of a page.
    let after = parameter("start-after").max(parameter("continuation-token"));
    let mut xml = String::from("<ListBucketResult>");
    let mut prefixes = BTreeSet::new();
    let mut count = 0;
    let mut next = None;
    for (path, object) in &store.objects {
        let Some(key) = path.strip_prefix(bucket).and_then(|key| key.strip_prefix('/')) else {
            continue;
        };
        let Some(rest) = key.strip_prefix(prefix).filter(|_| key > after) else { continue };
        let folder = (!delimiter.is_empty()).then(|| rest.split_once(delimiter)).flatten();
        if count == PAGE {
            break;
        }
        next = Some(key);
        match folder {
            Some((folder, _)) => {
                count += usize::from(prefixes.insert(format!("{prefix}{folder}{delimiter}")));
            }
            None => {
                count += 1;
                let _a_string_takes_everything = write!(
                    xml,
                    "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag>\
                     <Size>{}</Size></Contents>",
                    escaped(key),
                    humantime::format_rfc3339_millis(object.modified),
                    escaped(&object.etag),
                    object.bytes.len()
                );
            }
        }
    }
    for folder in &prefixes {
        let _a_string_takes_everything =
            write!(xml, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(folder));
    }
    let next = next.filter(|_| count == PAGE);
    let _a_string_takes_everything =
        write!(xml, "<KeyCount>{count}</KeyCount><IsTruncated>{}</IsTruncated>", next.is_some());
    if let Some(next) = next {
        let _a_string_takes_everything =
            write!(xml, "<NextContinuationToken>{}</NextContinuationToken>", escaped(next));
    }
    xml.push_str("</ListBucketResult>");
    Response::new(200, xml).with("content-type", "application/xml")
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The texts of all elements of that name.
pub(super) fn elements<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let rest = xml.split(&open).skip(1);
    rest.filter_map(|rest| rest.split(&close).next()).collect()
}
