//! What a layer does alike around an export of either kind: all that takes no time.

/// Methods of [`Export`](crate::export::Export) and of [`AsyncExport`](crate::export::AsyncExport) for
/// [`Layered`](super::Layered): what clients and requests meet first is the layer.
macro_rules! around {
    ($self:ident) => {
        fn size(&$self) -> u64 {
            $self.layer.size($self.inner.size())
        }

        fn block_size(&$self) -> BlockSize {
            $self.layer.block_size($self.inner.block_size())
        }

        fn block_size_required(&$self) -> bool {
            $self.layer.block_size_required($self.inner.block_size_required())
        }

        fn client_entered(&$self, client: &ClientInfo) {
            $self.inner.client_entered(client);
            $self.layer.client_entered(client);
        }

        fn client_left(&$self, client: &ClientInfo, reason: &CloseReason) {
            $self.layer.client_left(client, reason);
            $self.inner.client_left(client, reason);
        }

        fn admits(&$self) -> bool {
            L::ADMITS || $self.inner.admits()
        }

        fn admit(&$self, client: &ClientInfo, command: &Command) -> Admit {
            let own = $self.layer.admit(client, command);
            own.then(|| $self.inner.admit(client, &$self.moved_command(command)))
        }

        fn pace(&$self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
            let own = $self.layer.pace(client, command, now);
            own.max($self.inner.pace(client, &$self.moved_command(command), now))
        }

        fn begun(&$self, client: &ClientInfo, command: &Command, now: Instant) {
            $self.layer.begun(client, command, now);
            $self.inner.begun(client, &$self.moved_command(command), now);
        }

        fn finished(
            &$self,
            client: &ClientInfo,
            command: &Command,
            result: &Result<()>,
            took: Duration,
        ) {
            $self.inner.finished(client, &$self.moved_command(command), result, took);
            $self.layer.finished(client, command, result, took);
        }
    };
}
pub(super) use around;
