//! TLS: a certificate and its key from files. They are reloaded when they change, so a renewed certificate needs no
//! restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::{Accept, TlsAcceptor};

/// How often the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Why these files cannot be used for https.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, or has the wrong content.
    #[error("cannot read a {what} from `{}`: {reason}; it must be PEM", path.display())]
    File {
        /// The certificate or the private key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The two do not match.
    #[error("the certificate `{}` and the private key `{}` cannot be used together: {reason}", certificate.display(), private_key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The worker's TLS identity. Clones share it.
#[derive(Clone)]
pub struct Tls {
    files: Arc<Files>,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

struct Files {
    certificate: PathBuf,
    private_key: PathBuf,
}

/// The files' modification times and sizes when they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Marks([Option<(SystemTime, u64)>; 2]);

impl Tls {
    /// Loads both files.
    ///
    /// # Errors
    /// If one of them cannot be used, or they do not match.
    pub fn load(certificate: PathBuf, private_key: PathBuf) -> Result<Self, TlsError> {
        let files = Files { certificate, private_key };
        let current = files.read()?;
        Ok(Self { files: Arc::new(files), current: Arc::new(RwLock::new(current)) })
    }

    /// Checks the files periodically, forever, and reloads them when they change. Logs an error if the new files cannot
    /// be used, and keeps the old certificate.
    pub async fn reload_when_changed(self) {
        self.reload_every(CHECK_INTERVAL).await;
    }

    async fn reload_every(self, interval: Duration) {
        let mut marks = self.files.marks();
        loop {
            tokio::time::sleep(interval).await;
            let found = self.files.marks();
            if found != marks {
                marks = found;
                self.reload();
            }
        }
    }

    fn reload(&self) {
        match self.files.read() {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!("certificate reloaded");
            }
            Err(error) => tracing::error!(%error, "cannot use the changed certificate; the old one stays in use"),
        }
    }

    pub(super) fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Accept<S> {
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(config).accept(stream)
    }
}

impl Files {
    fn read(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let certificates = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unreadable("certificate", &self.certificate, &error.to_string()))?;
        if certificates.is_empty() {
            return Err(unreadable("certificate", &self.certificate, "the file has none"));
        }
        let key = PrivateKeyDer::from_pem_file(&self.private_key)
            .map_err(|error| unreadable("private key", &self.private_key, &error.to_string()))?;
        if is_readable_by_all(&self.private_key) {
            tracing::warn!(
                file = %self.private_key.display(),
                "every user of this machine can read the certificate's private key: remove that permission with \
                 `chmod o-r`"
            );
        }
        let pair = |error: tokio_rustls::rustls::Error| TlsError::Pair {
            certificate: self.certificate.clone(),
            private_key: self.private_key.clone(),
            reason: error.to_string(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn marks(&self) -> Marks {
        let mark = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Marks([mark(&self.certificate), mark(&self.private_key)])
    }
}

#[cfg(unix)]
fn is_readable_by_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn is_readable_by_all(_path: &Path) -> bool {
    false
}

fn unreadable(what: &'static str, path: &Path, reason: &str) -> TlsError {
    TlsError::File { what, path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        fn write(&self) -> CertifiedKey<rcgen::KeyPair> {
            let pair = generate_simple_self_signed(vec!["worker.test".to_owned()]).expect("a certificate");
            std::fs::write(self.path("certificate.pem"), pair.cert.pem()).expect("written");
            std::fs::write(self.path("key.pem"), pair.signing_key.serialize_pem()).expect("written");
            pair
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn load(&self) -> Result<Tls, TlsError> {
            Tls::load(self.path("certificate.pem"), self.path("key.pem"))
        }
    }

    fn shown(tls: &Tls) -> Arc<ServerConfig> {
        Arc::clone(&tls.current.read().expect("no panic under this lock"))
    }

    #[test]
    fn an_unusable_file_is_named() {
        let folder = Folder::new();
        let error = folder.load().err().expect("nothing there").to_string();
        assert!(error.contains("read a certificate") && error.contains("certificate.pem"), "{error}");
        folder.write();
        std::fs::write(folder.path("key.pem"), "no key").expect("written");
        let error = folder.load().err().expect("no key").to_string();
        assert!(error.contains("read a private key") && error.contains("key.pem"), "{error}");
        let other = Folder::new();
        let pair = other.write();
        std::fs::write(folder.path("key.pem"), pair.signing_key.serialize_pem()).expect("written");
        let error = folder.load().err().expect("another key").to_string();
        assert!(error.contains("cannot be used together"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_world_readable_private_key_is_reported() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = Folder::new();
        folder.write();
        for (mode, is_reported) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.path("key.pem"), permissions).expect("ours");
            let file = folder.path("log");
            let writer = std::fs::File::create(&file).expect("a file");
            let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
            // With a single subscriber, a thread that has none may disable the event.
            let _second = tracing::Dispatch::new(tracing_subscriber::registry());
            tracing::subscriber::with_default(subscriber, || drop(folder.load().expect("a pair")));
            let log = std::fs::read_to_string(file).expect("readable");
            assert_eq!(
                log.contains("every user of this machine can read") && log.contains("key.pem"),
                is_reported,
                "{mode:o}: {log}"
            );
        }
    }

    #[test]
    fn a_changed_certificate_is_loaded_and_a_broken_one_is_not() {
        let folder = Folder::new();
        folder.write();
        let tls = folder.load().expect("a pair");
        let first = shown(&tls);
        folder.write();
        tls.reload();
        let second = shown(&tls);
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(folder.path("certificate.pem"), "").expect("written");
        tls.reload();
        assert!(Arc::ptr_eq(&second, &shown(&tls)));
    }

    #[tokio::test]
    async fn the_files_are_checked_periodically() {
        let folder = Folder::new();
        folder.write();
        let tls = folder.load().expect("a pair");
        let first = shown(&tls);
        let looking = tokio::spawn(tls.clone().reload_every(Duration::from_millis(1)));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(Arc::ptr_eq(&first, &shown(&tls)), "nothing has changed");
        let started = std::time::Instant::now();
        while Arc::ptr_eq(&first, &shown(&tls)) {
            assert!(started.elapsed() < Duration::from_secs(20), "the new files were not loaded");
            // Written repeatedly: a check between the two writes finds a pair that does not match.
            folder.write();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        looking.abort();
    }
}
