//! Whether a new connection leads to the same export.

use std::sync::Arc;

use super::super::ExportDetails;

/// What is different about an export that should be the same, for people; `None` if nothing is. `sizes` are the sizes that
/// it may have: two if a resize was lost. Abilities may be added, as by a newer server.
pub(in super::super) fn difference(
    expected: &ExportDetails,
    sizes: [u64; 2],
    found: &ExportDetails,
) -> Option<Arc<str>> {
    let (was, is) = (expected, found);
    let text = if !sizes.contains(&is.size()) {
        format!("its size was {} and is {}", sizes[0], is.size())
    } else if !is.flags().contains(was.flags()) || is.is_read_only() != was.is_read_only() {
        format!("its transmission flags were {} and are {}", flags(was), flags(is))
    } else if is.block_size() != was.block_size() {
        format!("its block sizes were {:?} and are {:?}", was.block_size(), is.block_size())
    } else if is.sorted_contexts() != was.sorted_contexts() {
        format!("its metadata contexts were {:?} and are {:?}", was.contexts(), is.contexts())
    } else if is.canonical_name() != was.canonical_name() {
        format!("its name was {} and is {}", text(was.canonical_name()), text(is.canonical_name()))
    } else if is.description() != was.description() {
        format!("its description was {} and is {}", text(was.description()), text(is.description()))
    } else if (is.is_structured(), is.is_extended()) != (was.is_structured(), was.is_extended()) {
        "its server has other headers or replies".into()
    } else if is.is_tls() != was.is_tls() {
        "it was reached by TLS, and is not".into()
    } else {
        return None;
    };
    Some(text.into())
}

fn text(text: Option<&str>) -> String {
    text.map_or_else(|| "none".into(), |text| format!("{text:?}"))
}

fn flags(details: &ExportDetails) -> String {
    let names: Vec<_> = details.flags().iter_names().map(|(name, _)| name).collect();
    names.join("+")
}
