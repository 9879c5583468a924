//! What is different about a server, or goes wrong with it.

use super::http::{Request, Response};

/// How a server answers requests that read. By default as it should.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Ranges are ignored: all of an object comes, with status 200.
    pub no_ranges: bool,
    /// Conditions such as `If-Match` are ignored.
    pub no_conditions: bool,
    /// There are no ETags.
    pub no_etags: bool,
    /// ETags are weak ones.
    pub weak_etags: bool,
    /// There are no times of the last change.
    pub no_times: bool,
    /// HEAD is answered with 405.
    pub no_head: bool,
    /// The connection is closed behind so many bytes of a body.
    pub cut_after: Option<usize>,
    /// Bodies have no end.
    pub endless: bool,
    /// Headers that answers have, or that replace those that they have.
    pub headers: Vec<(&'static str, String)>,
    /// Every request is answered with this status.
    pub status: Option<u16>,
    /// Every request is sent to this URL, with the path and the query that it has.
    pub redirect: Option<String>,
}

impl Manners {
    /// The answer that no object is needed for.
    pub(super) fn answer(&self, request: &Request) -> Option<Response> {
        if let Some(status) = self.status {
            return Some(Response::new(status, "<Error><Code>AsTheTestWants</Code></Error>"));
        }
        if let Some(url) = &self.redirect {
            return Some(
                Response::new(307, "").with("location", format!("{url}{}", request.target)),
            );
        }
        (self.no_head && request.method == "HEAD").then(|| Response::new(405, ""))
    }

    /// Leaves out of a request what the server ignores.
    pub(super) fn ignore(&self, request: &mut Request) {
        if self.no_ranges {
            request.remove_header("range");
        }
        if self.no_conditions {
            request.remove_header("if-match");
            request.remove_header("if-none-match");
        }
    }

    /// Changes an answer.
    pub(super) fn change(&self, response: &mut Response) {
        response.headers.retain(|(name, _)| match *name {
            "etag" => !self.no_etags,
            "last-modified" => !self.no_times,
            _ => true,
        });
        for (name, value) in &self.headers {
            response.headers.retain(|(other, _)| other != name);
            response.headers.push((name, value.clone()));
        }
        if self.weak_etags {
            for (_, etag) in response.headers.iter_mut().filter(|(name, _)| *name == "etag") {
                *etag = format!("W/{etag}");
            }
        }
    }
}
