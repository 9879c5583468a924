//! Whether two sessions with the same client came to the same.

use nbd_proto::wire::{
    CommandType, InfoReply, MetaContextReply, OptionCode, OptionReplyType, ServerReply,
};

use crate::digest::{Digest, Haggled, Served};

/// Where our server's session differs in meaning from the recorded one, in words.
#[must_use]
pub fn differences(recorded: &Digest, ours: &Digest) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |what: String, theirs: String, ours: String| {
        if theirs != ours {
            found.push(format!("{what}: {theirs}, ours: {ours}"));
        }
    };
    note("oldstyle".into(), format!("{:?}", recorded.oldstyle), format!("{:?}", ours.oldstyle));
    note("options".into(), recorded.options.len().to_string(), ours.options.len().to_string());
    note("requests".into(), recorded.requests.len().to_string(), ours.requests.len().to_string());
    for (theirs, ours) in recorded.options.iter().zip(&ours.options) {
        let what = format!("{}", theirs.code);
        note(format!("{what} entered"), entered(theirs), entered(ours));
        note(format!("{what} end"), end(theirs), end(ours));
        let (theirs, ours) = (items(theirs), items(ours));
        for (name, value) in &theirs {
            let found = ours.iter().find(|(other, _)| other == name);
            let found = found.map_or("nothing", |(_, value)| value);
            note(format!("{what} {name}"), value.clone(), found.to_owned());
        }
        for (name, value) in &ours {
            // Our server tells more of those that ask than many do.
            if name != "block size" && !theirs.iter().any(|(other, _)| other == name) {
                note(format!("{what} {name}"), "nothing".into(), value.clone());
            }
        }
    }
    for (theirs, our) in recorded.requests.iter().zip(&ours.requests) {
        let request = theirs.request;
        let what = format!("{} at {}+{}", request.command, request.offset, request.length);
        let error = |served: &Served| format!("{:?}", served.error());
        note(format!("{what} done"), theirs.done.to_string(), our.done.to_string());
        note(format!("{what} error"), error(theirs), error(our));
        if theirs.error().is_none() {
            let same = theirs.content() == our.content();
            note(format!("{what} data"), true.to_string(), same.to_string());
        }
        let (theirs, our) = (recorded.extents(theirs), ours.extents(our));
        note(format!("{what} extents"), format!("{theirs:?}"), format!("{our:?}"));
    }
    found
}

/// Whether all requests that need an answer were answered.
#[must_use]
pub fn is_complete(digest: &Digest) -> bool {
    let mut requests = digest.requests.iter();
    requests.all(|served| served.done || served.request.command == CommandType::DISC)
}

fn entered(option: &Haggled) -> String {
    format!("{:?}", option.entered)
}

/// The reply that ended an option.
fn end(option: &Haggled) -> String {
    option.replies.last().map_or_else(|| "none".into(), |(reply, _)| reply.to_string())
}

/// What replies reported before the end: names and values.
fn items(option: &Haggled) -> Vec<(String, String)> {
    let mut items = Vec::new();
    for (reply, data) in &option.replies {
        match *reply {
            OptionReplyType::INFO => items.push(match InfoReply::decode(data) {
                Ok(InfoReply::Export(export)) => {
                    ("size and flags".into(), format!("{} {:#06x}", export.size, export.flags))
                }
                Ok(InfoReply::Name(name)) => ("name".into(), format!("{name:?}")),
                Ok(InfoReply::Description(text)) => ("description".into(), format!("{text:?}")),
                Ok(InfoReply::BlockSize(sizes)) => ("block size".into(), format!("{sizes:?}")),
                other => ("info".into(), format!("{other:?}")),
            }),
            OptionReplyType::SERVER => {
                let server = ServerReply::decode(data);
                items.push((format!("{server:?}"), "listed".into()));
            }
            OptionReplyType::META_CONTEXT => {
                let context = MetaContextReply::decode(data);
                let numbered = option.code == OptionCode::SET_META_CONTEXT;
                let value = match context {
                    Ok(context) if !numbered => format!("listed as {}", context.id),
                    _ => "selected".into(),
                };
                items.push((context.map_or("?", |context| context.name).to_owned(), value));
            }
            _ => {}
        }
    }
    items
}
