//! Serves a disk in memory over TLS, with the certificates of a folder that `nbd cert` made: `tls_server DIR`, or
//! `tls_server DIR mutual` to have clients show theirs.
use nbd_blocking::export::{ExportMap, Memory};
use nbd_blocking::tls::{ClientCertificates, ServerTlsMode, TlsServer};
use nbd_blocking::{Server, ServerConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("give a folder with certificates")?;
    let mutual = std::env::args().nth(2).as_deref() == Some("mutual");
    let clients = if mutual { ClientCertificates::Required } else { ClientCertificates::Off };
    let tls = TlsServer::from_directory(dir, clients)?;
    let config = ServerConfig::new().with_tls(ServerTlsMode::Required, tls);
    let exports = ExportMap::new().with("", Memory::new(64 << 20)?)?;
    let server = Server::with_config(exports, config);
    let listening = server.listen_tcp("127.0.0.1:10999")?;
    println!("nbds://{}/", listening.local_addr());
    server.wait();
    Ok(())
}
