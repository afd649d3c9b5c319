//! How etcd is reached over TLS: what the settings say, and the files that they name.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sluice_store::etcd::Tls;

/// PEM files, read whenever a connection to etcd is begun by a start of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    ca: PathBuf,
    /// Our certificate and its key, where etcd asks for one.
    identity: Option<(PathBuf, PathBuf)>,
}

/// The files as the settings name them.
#[derive(Debug, Default)]
pub(crate) struct Named {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

impl Named {
    /// Whether they fit each other and the endpoints; nothing for an etcd without TLS.
    pub(crate) fn check(self, endpoints: &[String]) -> Result<Option<Files>> {
        let secure = |url: &&String| url.starts_with("https://");
        if let Some(other) = endpoints.iter().find(|url| !secure(url) && !url.starts_with("http://")) {
            bail!("etcd: {other:?} must be a URL such as https://192.0.2.21:2379");
        }
        let all = endpoints.iter().filter(secure).count();
        if all != 0 && all != endpoints.len() {
            bail!("etcd: endpoints must be all https:// or all http://");
        }
        let Named { ca, certificate, key } = self;
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) => bail!("etcdCertfile: its key is missing (--etcd-keyfile)"),
            (None, Some(_)) => bail!("etcdKeyfile: its certificate is missing (--etcd-certfile)"),
        };
        match ca {
            Some(ca) if all > 0 => Ok(Some(Files { ca, identity })),
            None if all > 0 => {
                bail!("etcdCafile: https:// endpoints need the authority of their certificates (--etcd-cafile)")
            }
            None if identity.is_none() => Ok(None),
            _ => bail!("etcdCafile, etcdCertfile, etcdKeyfile: they are for https:// endpoints (--etcd)"),
        }
    }
}

impl Files {
    pub(crate) fn read(&self) -> Result<Tls> {
        let read = |setting: &str, file: &Path| {
            fs::read(file).with_context(|| format!("{setting}: cannot read {}", file.display()))
        };
        let identity = match &self.identity {
            Some((certificate, key)) => Some((read("etcdCertfile", certificate)?, read("etcdKeyfile", key)?)),
            None => None,
        };
        Ok(Tls { ca: read("etcdCafile", &self.ca)?, identity, server_name: None })
    }

    /// Settings and their values.
    pub(crate) fn settings(&self) -> Vec<(&'static str, &'static str, &Path)> {
        let mut all = vec![("etcdCafile", "--etcd-cafile", &*self.ca)];
        if let Some((certificate, key)) = &self.identity {
            all.extend([
                ("etcdCertfile", "--etcd-certfile", &**certificate),
                ("etcdKeyfile", "--etcd-keyfile", &**key),
            ]);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_endpoints_fit_each_other() {
        let check = |endpoints: &str, files: [&str; 3]| {
            let [ca, certificate, key] = files.map(|name| Some(PathBuf::from(name)).filter(|_| !name.is_empty()));
            let endpoints: Vec<String> = endpoints.split_whitespace().map(str::to_owned).collect();
            match (Named { ca, certificate, key }).check(&endpoints) {
                Ok(None) => "plain".to_owned(),
                Ok(Some(files)) => files.settings().iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(" "),
                Err(error) => error.to_string(),
            }
        };
        for (endpoints, files, expected) in [
            ("", ["", "", ""], "plain"),
            ("http://a:1 http://b:1", ["", "", ""], "plain"),
            ("https://a:1", ["ca", "", ""], "etcdCafile"),
            ("https://a:1 https://b:1", ["ca", "cert", "key"], "etcdCafile etcdCertfile etcdKeyfile"),
        ] {
            assert_eq!(check(endpoints, files), expected, "{endpoints} {files:?}");
        }
        for (endpoints, files, begins) in [
            ("a:1", ["", "", ""], "etcd: \"a:1\" must be a URL"),
            ("http://a:1 https://b:1", ["ca", "", ""], "etcd: endpoints must be all"),
            ("https://a:1", ["", "", ""], "etcdCafile: https:// endpoints need"),
            ("https://a:1", ["ca", "cert", ""], "etcdCertfile: its key is missing"),
            ("https://a:1", ["ca", "", "key"], "etcdKeyfile: its certificate is missing"),
            ("http://a:1", ["ca", "", ""], "etcdCafile, etcdCertfile, etcdKeyfile: they are for https://"),
            ("", ["", "cert", "key"], "etcdCafile, etcdCertfile, etcdKeyfile: they are for https://"),
        ] {
            assert!(check(endpoints, files).starts_with(begins), "{}", check(endpoints, files));
        }
    }
}
