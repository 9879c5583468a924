//! What a client asks before it uses an export, and which export it uses.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nbd_proto::server::{self, Connection, Listing, LookupOutcome, LookupRefusal, Purpose};
use nbd_proto::wire::{OptionCode, OptionReplyType};
use nbd_proto::{Misuse, SelectedContext};

use super::dispatch::guarded;
use super::state::ServerState;
use super::status::Source;
use super::visit::Visit;
use super::{ConnectionError, ServerConfig, dispatch};
use crate::export::{AnyExport, ClientInfo, CloseReason, ExportEntry, Kind, ListedExport, Refusal};

/// A question of the client's that the exports have not answered yet.
enum Question {
    List(Answer<Vec<ListedExport>>),
    Find(String, Answer<ExportEntry>),
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send>>;

/// A client and the export that it asks about or uses.
pub(super) struct Negotiation {
    client: Arc<ClientInfo>,
    question: Option<Question>,
    /// The export that the client looked at last, and that it uses once it entered.
    export: Option<ExportEntry>,
    visit: Option<Arc<Visit>>,
    /// What the server was configured as when the connection began.
    config: Arc<ServerConfig>,
    log: RefusalLog,
}

/// Notes what a client is refused, which may go without a word then.
struct RefusalLog {
    /// How many lines more: a client can ask thousands of times.
    left: u8,
}

impl RefusalLog {
    /// The last option that was refused since this was called before. `export` is what the client asked for by it, as far
    /// as that is known.
    fn refused(&mut self, connection: &mut Connection, export: &str) {
        let Some((option, error)) = connection.take_refused_option() else { return };
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        let export: String = export.chars().take(MAX_LOGGED).collect();
        match (option, error) {
            (_, OptionReplyType::ERR_TLS_REQD) => {
                tracing::info!(%option, %error, export, "refused a client without TLS");
            }
            (OptionCode::GO | OptionCode::LIST, _) => {
                tracing::info!(%option, %error, export, "refused a client");
            }
            // What clients try, and do without.
            _ => tracing::debug!(%option, %error, export, "refused an option"),
        }
    }
}

/// Lines about refusals for each client.
const MAX_REFUSALS: u8 = 16;

/// Characters of a name in the log.
const MAX_LOGGED: usize = 100;

impl Negotiation {
    pub(super) const fn new(client: Arc<ClientInfo>, config: Arc<ServerConfig>) -> Self {
        let log = RefusalLog { left: MAX_REFUSALS };
        Self { client, question: None, export: None, visit: None, config, log }
    }

    /// What the server was configured as when the connection began.
    #[cfg(feature = "tls")]
    pub(super) const fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// The machine of a connection that was just accepted: an oldstyle client gets its export at once.
    pub(super) async fn begin(
        &mut self,
        state: &ServerState,
    ) -> Result<Connection, ConnectionError> {
        let config = Arc::clone(&self.config);
        #[cfg(feature = "tls")]
        if let (Some(tls), Some(identity)) = (config.tls(), &self.client.tls)
            && !tls.admits(identity)
        {
            return Err(ConnectionError::NotAllowed(identity.names.clone()));
        }
        let Some(name) = state.oldstyle_export() else {
            let protocol = config.protocol().clone();
            return Ok(match self.client.tls {
                Some(_) => Connection::inside_of_tls(protocol),
                None => Connection::new(protocol),
            });
        };
        let client = Arc::clone(&self.client);
        let found = state.exports().find(name.into(), Purpose::Enter, client).await;
        let refused = |refusal| ConnectionError::ExportRefused { name: name.into(), refusal };
        let entry = found.map_err(refused)?;
        let info = dispatch::describe(&entry, &config, core::iter::empty());
        let connection = Connection::oldstyle(config.protocol().clone(), &info)?;
        self.export = Some(entry);
        Ok(connection)
    }

    /// The client has proved who it is.
    #[cfg(feature = "tls")]
    pub(super) fn identified(&mut self, identity: crate::export::TlsIdentity) {
        let mut client = (*self.client).clone();
        client.tls = Some(identity);
        self.client = Arc::new(client);
    }

    /// Logs what was refused since this was called before.
    pub(super) fn log_refused(&mut self, connection: &mut Connection) {
        self.log.refused(connection, "");
    }

    /// The client wants a list of the exports.
    pub(super) fn list(&mut self, state: &ServerState) {
        self.question = Some(Question::List(state.exports().list(Arc::clone(&self.client))));
    }

    /// The client names an export.
    pub(super) fn look_up(&mut self, state: &ServerState, lookup: server::LookupQuestion) {
        let client = Arc::clone(&self.client);
        let name = lookup.name.clone();
        let found = state.exports().find(lookup.name, lookup.purpose, client);
        self.question = Some(Question::Find(name, found));
    }

    /// Answers the client's question if the exports have. `None` if they have not, or there is none.
    pub(super) fn answer(
        &mut self,
        connection: &mut Connection,
        state: &ServerState,
        cx: &mut Context<'_>,
    ) -> Option<Result<LookupOutcome, Misuse>> {
        let log = &mut self.log;
        let result = match self.question.as_mut()? {
            Question::List(answer) => {
                let Poll::Ready(listed) = answer.as_mut().poll(cx) else { return None };
                let answered = match &listed {
                    Ok(listed) => connection.answer_list(listed.iter().map(listing)),
                    Err(refusal) => connection.refuse_list(in_protocol(refusal)),
                };
                answered.map(|()| LookupOutcome::Negotiating)
            }
            Question::Find(name, answer) => {
                let Poll::Ready(found) = answer.as_mut().poll(cx) else { return None };
                let described = found.and_then(|entry| {
                    let (config, queries) = (&*self.config, connection.queries());
                    match guarded(|| dispatch::describe(&entry, config, queries)) {
                        Ok(mut info) => {
                            // The client may have begun before TLS was required.
                            info.tls_required |= state.config().requires_tls();
                            Ok((entry, info))
                        }
                        Err(_) => Err(Refusal::panicked()),
                    }
                });
                let answer = described.as_ref().map(|(_, info)| info).map_err(in_protocol);
                log.refused(connection, "");
                let outcome = connection.answer_lookup(answer);
                log.refused(connection, name);
                self.export = described.ok().map(|(entry, _)| entry);
                outcome
            }
        };
        self.question = None;
        Some(result)
    }

    /// Transmission begins. Gives where the status in each selected context comes from.
    pub(super) fn enter(&mut self, selected: &[SelectedContext]) -> Vec<(u32, Source)> {
        let Some(entry) = &self.export else { return Vec::new() };
        tracing::Span::current().record("export", entry.name());
        self.visit = Some(Visit::begin(entry.clone(), Arc::clone(&self.client)));
        let extents = entry.export().facts().extents;
        selected.iter().map(|one| (one.id, Source::new(&one.name, extents))).collect()
    }

    /// The client.
    pub(super) fn client(&self) -> &ClientInfo {
        &self.client
    }

    /// The export in use.
    pub(super) fn export(&self) -> Option<&AnyExport> {
        self.export.as_ref().map(ExportEntry::export)
    }

    /// The name of the export in use, as its entry has it.
    pub(super) fn export_name(&self) -> Option<&str> {
        self.export.as_ref().map(ExportEntry::name)
    }

    /// Which kind of export is in use.
    pub(super) fn kind(&self) -> Option<&Kind> {
        self.export().map(AnyExport::kind)
    }

    /// What those hold who work for the client.
    pub(super) fn visit(&self) -> Option<Arc<Visit>> {
        self.visit.clone()
    }

    /// The connection is over; the export learns why once the last request has ended.
    pub(super) fn leave(&mut self, reason: CloseReason) {
        self.question = None;
        if let Some(visit) = self.visit.take() {
            visit.ends_for(reason);
        }
    }
}

fn listing(export: &ListedExport) -> Listing<'_> {
    Listing { name: export.name(), description: export.description() }
}

fn in_protocol(refusal: &Refusal) -> LookupRefusal<'_> {
    match refusal {
        Refusal::Unknown => LookupRefusal::Unknown,
        Refusal::Policy(text) => LookupRefusal::Policy(text),
        Refusal::ShuttingDown(text) => LookupRefusal::ShuttingDown(text),
    }
}
