//! The objects, and what requests do with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::http::{Request, Response};
use super::listing::{elements, list};

/// All objects, by `BUCKET/KEY`.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) objects: BTreeMap<String, Object>,
    /// Objects whose parts come one by one.
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    /// Makes each ETag another one.
    changes: u64,
}

/// An object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) etag: String,
    pub(super) modified: SystemTime,
}

impl Store {
    /// Stores an object, and returns its ETag.
    pub(super) fn put(&mut self, path: &str, bytes: Vec<u8>) -> String {
        self.changes += 1;
        let etag = format!("\"{:032x}\"", self.changes);
        let object =
            Object { bytes: bytes.into(), etag: etag.clone(), modified: SystemTime::now() };
        self.objects.insert(path.to_owned(), object);
        etag
    }

    /// Carries a request out.
    pub(super) fn answer(&mut self, request: &Request) -> Response {
        let path = request.path.trim_end_matches('/');
        match (request.method.as_str(), path.split_once('/')) {
            ("GET", None) => list(self, path, request),
            ("POST", None) if request.query.contains_key("delete") => {
                self.delete_all(path, request)
            }
            ("GET" | "HEAD", _) => self.get(path, request),
            ("PUT", _) => self.write(path, request),
            ("POST", _) => self.upload(path, request),
            ("DELETE", _) => {
                match request.query.get("uploadId") {
                    Some(id) => drop(self.uploads.remove(id)),
                    None => drop(self.objects.remove(path)),
                }
                Response::new(204, "")
            }
            _ => Response::new(405, "there is no such method"),
        }
    }

    fn get(&self, path: &str, request: &Request) -> Response {
        let Some(object) = self.objects.get(path) else { return missing() };
        let wanted = request.header("if-match");
        if !wanted.is_empty() && wanted != object.etag {
            return precondition();
        }
        if request.header("if-none-match") == object.etag {
            return Response::new(304, "").with("etag", &object.etag);
        }
        let length = object.bytes.len();
        let described = |response: Response| {
            response
                .with("etag", &object.etag)
                .with("last-modified", httpdate::fmt_http_date(object.modified))
                .with("accept-ranges", "bytes")
        };
        match request.range(length) {
            None => described(Response::new(200, object.bytes.to_vec())),
            Some(range) if range.start >= length || range.is_empty() => {
                Response::new(416, "the range is not there")
            }
            Some(range) => {
                let named = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                described(Response::new(206, &object.bytes[range])).with("content-range", named)
            }
        }
    }

    fn write(&mut self, path: &str, request: &Request) -> Response {
        if let Some(id) = request.query.get("uploadId") {
            let number = request.query.get("partNumber").and_then(|number| number.parse().ok());
            let (Some(parts), Some(number)) = (self.uploads.get_mut(id), number) else {
                return missing();
            };
            parts.insert(number, request.body.clone());
            return Response::new(200, "").with("etag", format!("\"{number}\""));
        }
        if self.is_refused(path, request) {
            return precondition();
        }
        let source = request.header("x-amz-copy-source").trim_start_matches('/');
        if source.is_empty() {
            let etag = self.put(path, request.body.clone());
            return Response::new(200, "").with("etag", etag);
        }
        let Some(bytes) = self.objects.get(source).map(|object| object.bytes.to_vec()) else {
            return missing();
        };
        let etag = self.put(path, bytes);
        Response::new(200, format!("<CopyObjectResult><ETag>{etag}</ETag></CopyObjectResult>"))
    }

    /// Whether an object that is there, or another one than was expected, keeps a request from writing.
    fn is_refused(&self, path: &str, request: &Request) -> bool {
        let there = self.objects.get(path);
        let expected = request.header("if-match");
        let is_other = !expected.is_empty() && there.is_none_or(|object| object.etag != expected);
        is_other || (request.header("if-none-match") == "*" && there.is_some())
    }

    fn upload(&mut self, path: &str, request: &Request) -> Response {
        let Some(id) = request.query.get("uploadId") else {
            self.changes += 1;
            let id = self.changes.to_string();
            self.uploads.insert(id.clone(), BTreeMap::new());
            return Response::new(
                200,
                format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                     </InitiateMultipartUploadResult>"
                ),
            );
        };
        if self.is_refused(path, request) {
            return precondition();
        }
        let Some(parts) = self.uploads.remove(id) else { return missing() };
        let etag = self.put(path, parts.into_values().flatten().collect());
        let quoted = super::listing::escaped(&etag);
        Response::new(
            200,
            format!(
                "<CompleteMultipartUploadResult><ETag>{quoted}</ETag>\
                 </CompleteMultipartUploadResult>"
            ),
        )
    }

    fn delete_all(&mut self, bucket: &str, request: &Request) -> Response {
        let xml = String::from_utf8_lossy(&request.body).into_owned();
        for key in elements(&xml, "Key") {
            self.objects.remove(&format!("{bucket}/{key}"));
        }
        Response::new(200, "<DeleteResult></DeleteResult>")
    }
}

fn missing() -> Response {
    Response::new(404, "<Error><Code>NoSuchKey</Code></Error>")
}

fn precondition() -> Response {
    Response::new(412, "<Error><Code>PreconditionFailed</Code></Error>")
}
