//! Data of the metadata context options (sections "Option types" and "Metadata querying").

use alloc::vec::Vec;

use super::option::put_string;
use super::{DecodeError, Reader};

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT` (section "Option types"), checked for shape
/// only: strings are as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// The export asked about; empty for the default one.
    pub name: &'a [u8],
    /// How many queries there are: as many as [`queries`](Self::queries) gives.
    pub count: u32,
    queries: Queries<'a>,
}

/// Queries behind each other, each with its length before it; checked for shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queries<'a>(&'a [u8]);

impl<'a> Queries<'a> {
    /// The queries of which [`as_bytes`](Self::as_bytes) were kept.
    pub(crate) const fn kept(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Queries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut reader = Reader::new(self.0);
        let length = reader.u32("query length").ok()?;
        let query = reader.bytes(length, "query").ok()?;
        self.0 = reader.take_rest();
        Some(query)
    }
}

impl<'a> MetaContextRequest<'a> {
    /// Decodes the data of the option.
    ///
    /// # Errors
    /// [`DecodeError`] when anything reaches past the end or is left over.
    // S-OPT-LM-02, S-OPT-LM-14
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        let length = reader.u32("name length")?;
        let name = reader.bytes(length, "name")?;
        let count = reader.u32("number of queries")?;
        let queries = Queries(reader.clone().take_rest());
        for _ in 0..count {
            let length = reader.u32("query length")?;
            reader.bytes(length, "query")?;
        }
        reader.finish()?;
        Ok(Self { name, count, queries })
    }

    /// The queries, in the client's order.
    pub fn queries(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.queries
    }

    /// The queries, as they can be kept.
    pub(crate) const fn raw_queries(&self) -> Queries<'a> {
        self.queries
    }

    /// Appends the data of a request to `out`. The strings are not checked.
    pub fn encode<'q>(
        name: &str,
        queries: impl ExactSizeIterator<Item = &'q str>,
        out: &mut Vec<u8>,
    ) {
        put_string(name, out);
        let count = u32::try_from(queries.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for query in queries.take(count as usize) {
            put_string(query, out);
        }
    }
}

/// The data of an `NBD_REP_META_CONTEXT` reply (section "Option reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaContextReply<'a> {
    /// The number that stands for the context in block status chunks; 0 in answers to LIST.
    pub id: u32,
    /// Namespace, colon, leaf.
    pub name: &'a str,
}

impl<'a> MetaContextReply<'a> {
    /// Decodes the data of the reply.
    ///
    /// # Errors
    /// [`DecodeError`] when the data is too short, or the name breaks the rules for strings.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        let id = reader.u32("context id")?;
        let name = reader.rest_as_string("context name")?;
        Ok(Self { id, name })
    }

    /// Appends the data to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(self.name.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip() {
        let mut data = Vec::new();
        MetaContextRequest::encode("disk", ["base:allocation", "x-a:"].into_iter(), &mut data);
        let request = MetaContextRequest::decode(&data).unwrap();
        assert_eq!((request.name, request.count), (&b"disk"[..], 2));
        assert!(request.queries().eq([&b"base:allocation"[..], b"x-a:"]));
    }

    #[test]
    fn a_name_count_or_query_past_the_end_is_refused() {
        let mut good = Vec::new();
        MetaContextRequest::encode("d", ["base:"].into_iter(), &mut good);
        for cut in 0..good.len() {
            assert!(MetaContextRequest::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut many = good.clone();
        many[5..9].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(MetaContextRequest::decode(&many).is_err());
        good.push(0);
        assert_eq!(MetaContextRequest::decode(&good), Err(DecodeError::LeftOver(1)));
    }
}
