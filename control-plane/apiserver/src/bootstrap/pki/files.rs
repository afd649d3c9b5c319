//! Files of the key directory: 0600, replaced whole (temporary file, fsync, rename, fsync of the
//! directory), so that a crash leaves either the old content or the new one.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

pub(super) fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("the key directory {} cannot be made", dir.display()))
}

/// The text of a file, or `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("{} cannot be read", path.display())),
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let written = || -> std::io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    written().with_context(|| format!("{} cannot be written", path.display()))
}

/// A 32-byte key in base64, made when missing.
pub(super) fn open_secret_key(path: &Path) -> Result<[u8; 32]> {
    if let Some(text) = read(path)? {
        let bytes = BASE64.decode(text.trim()).unwrap_or_default();
        let Ok(key) = bytes.try_into() else {
            bail!(
                "{} is damaged (32 bytes in base64 are expected): restore it from a backup, \
                 the Secrets in the store cannot be read without it",
                path.display()
            );
        };
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    write(path, format!("{}\n", BASE64.encode(key)).as_bytes())?;
    Ok(key)
}

/// This machine's name, when it can stand in a certificate.
pub(super) fn hostname() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim().to_ascii_lowercase();
    let usable = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    usable.then_some(name)
}
