//! What a program needs to name is to be named by its adapter alone.

/// A module of tests for an adapter: its crate, and where its server and its module `client` are.
macro_rules! names {
    ($adapter:ident, $root:ident, $($server:ident)::+) => {
        mod $adapter {
            use $($server)::+::client::{
                ClientConfig, Error, ErrorCode, Limits, OptionCode, OptionReplyType, NoSession, TransmissionFlags, Uri,
            };
            use $root::export::{
                ClientInfo, ErrorCode as ExportErrorCode, ExportEntry, ExportError, ExportMap,
                Exports, InvalidName, ListedExport, Lookup, Memory, PeerAddr, Purpose,
                Refusal,
            };
            use $root::{DEFAULT_PORT, Limits as ServerLimits, LocalAddr, ServerConfig};
            use $($server)::+::Listening;

            /// Exports that are for some.
            struct Guarded(ExportMap);

            impl Exports for Guarded {
                async fn list(&self, _: &ClientInfo) -> Result<Vec<ListedExport>, Refusal> {
                    Err(Refusal::policy("there is no list"))
                }

                async fn find(&self, lookup: &Lookup<'_>) -> Result<ExportEntry, Refusal> {
                    match (&lookup.client.peer, lookup.purpose) {
                        (PeerAddr::Other(_), Purpose::Enter) => Err(Refusal::Unknown),
                        _ => self.0.find(lookup).await,
                    }
                }
            }

            /// What errors and clients give can be compared with.
            #[expect(dead_code, reason = "it is there to be compiled")]
            fn what(error: &Error, flags: TransmissionFlags) -> (bool, bool) {
                let missing = match error {
                    Error::Refused { refusal: NoSession::Option { code, reply }, .. } => {
                        (*code, *reply) == (OptionCode::GO, OptionReplyType::ERR_UNKNOWN)
                    }
                    Error::Protocol { source: $root::proto::Error::LimitExceeded(_), .. } => false,
                    _ => error.code() == Some(ErrorCode::ENOSPC),
                };
                (missing, flags.contains(TransmissionFlags::READ_ONLY))
            }

            /// A handle can be kept.
            #[expect(dead_code, reason = "it is there to be compiled")]
            struct Kept(Vec<Listening>, LocalAddr);

            #[test]
            fn limits_codes_and_the_port_can_be_named() {
                let config = ServerConfig::new().with_limits(ServerLimits::DEFAULT);
                assert_eq!(*config.limits(), Limits::DEFAULT);
                let _client = ClientConfig::new().with_limits(Limits::DEFAULT);
                let error = ExportError::new(ExportErrorCode::ESHUTDOWN, "it goes away");
                assert_eq!(error, ExportError::shutting_down("it goes away"));
                let uri: Uri = format!("nbd://localhost:{DEFAULT_PORT}").parse().expect("a URI");
                assert_eq!(uri, "nbd://localhost".parse().expect("a URI"));
            }

            #[test]
            fn names_that_can_not_be_listed_are_refused_at_once() {
                let with = |name: &str| -> Result<ExportMap, InvalidName> {
                    ExportMap::new().with(name, Memory::new(512).expect("it is small"))
                };
                nbd_testkit::cases(100, |random| {
                    let length = random.of(&[0, 1, 4095, 4096, 4097, 5000]);
                    let mut name = "x".repeat(length);
                    let has_nul = random.one_in(2);
                    if has_nul {
                        name.insert(random.below(length as u64 + 1) as usize, '\0');
                    }
                    assert_eq!(
                        with(&name).is_ok(),
                        !has_nul && length <= 4096,
                        "{length} {has_nul}"
                    );
                });
                let _guarded = Guarded(with("disk").expect("a short name"));
            }
        }
    };
}

names!(blocking, nbd_blocking, nbd_blocking);
names!(tokio, nbd_tokio, nbd_tokio);
names!(async_std, nbd_async_std, nbd_async_std);
names!(smol, nbd_async_std, nbd_async_std::smol);
