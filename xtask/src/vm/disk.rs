//! The box's disk: a partition table of one entry, GRUB in the gap before it, and the file tree. Written as a file, without
//! a loop device, and packed as the provider of machines wants it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context, Result, ensure};

use super::root::inside;
use crate::sh;

const SECTOR: u64 = 512;
/// Where the partition begins: at 1 MiB, as everywhere. GRUB's second part lies before it.
const FIRST: u64 = 2048;
/// Of GRUB's first sector, what is code; the partition table comes after it.
const CODE: usize = 440;

/// What GRUB's second part can do: read the partition, and its settings there.
const MODULES: &[&str] = &["biosdisk", "part_msdos", "ext2", "normal", "linux", "serial", "terminal", "echo", "boot"];

/// The kernel's own links in `/` lead to the newest one, so that an upgrade needs no other settings.
const SETTINGS: &str = "\
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
linux /vmlinuz root=LABEL=sluice-box ro net.ifnames=0 console=tty0 console=ttyS0
initrd /initrd.img
boot
";

/// `size` is in GiB, of which only what is used takes room; `form` are the words by which `qemu-img convert` packs it.
pub(super) fn build(root: &Path, image: &Path, size: u64, form: &[&str]) -> Result<()> {
    fs::create_dir_all(root.join("boot/grub"))?;
    fs::write(root.join("boot/grub/grub.cfg"), SETTINGS)?;
    let mut make = vec!["grub-mkimage", "-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o", "/boot/grub/core.img"];
    make.extend(MODULES);
    inside(root, &make)?;
    let code = fs::read(root.join("usr/lib/grub/i386-pc/boot.img")).context("GRUB's first sector")?;
    let core = fs::read(root.join("boot/grub/core.img"))?;

    let raw = image.with_extension("raw");
    let bytes = size << 30;
    File::create(&raw)?.set_len(bytes)?;
    let mut make = sh::command(sh::which("mke2fs").context("mke2fs is not installed")?);
    // Without what GRUB 2.06 cannot read.
    make.args(["-q", "-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file", "-L", "sluice-box", "-d"]).arg(root);
    make.args(["-E", &format!("offset={}", FIRST * SECTOR)]);
    sh::output(make.arg(&raw).arg(format!("{}k", (bytes - FIRST * SECTOR) / 1024)))?;
    let disk = OpenOptions::new().write(true).open(&raw)?;
    for (at, part) in before(&code, &core, bytes / SECTOR)? {
        disk.write_all_at(&part, at)?;
    }
    drop(disk);
    let mut convert = sh::command("qemu-img");
    sh::output(convert.args(["convert", "-m", "2", "-f", "raw"]).args(form).arg(&raw).arg(image))?;
    fs::remove_file(&raw).map_err(Into::into)
}

/// What lies before the partition, and where: the first sector, and GRUB's second part right after it, where the first one
/// looks for it unless told otherwise. `sectors` is the disk's size.
fn before(code: &[u8], core: &[u8], sectors: u64) -> Result<[(u64, Vec<u8>); 2]> {
    ensure!(code.len() as u64 == SECTOR, "GRUB's first part is a sector, this one has {} bytes", code.len());
    ensure!(core.len() as u64 <= (FIRST - 1) * SECTOR, "GRUB's second part does not fit before the partition");
    let mut first = vec![0; SECTOR as usize];
    first[..CODE].copy_from_slice(&code[..CODE]);
    let entry = &mut first[446..462];
    // May be booted from; Linux; where and how long. The old kind of address, by heads, is past its end.
    entry[0] = 0x80;
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = 0x83;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&u32::try_from(FIRST)?.to_le_bytes());
    entry[12..16].copy_from_slice(&u32::try_from(sectors - FIRST)?.to_le_bytes());
    first[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok([(0, first), (SECTOR, core.to_vec())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_the_partition_and_keeps_the_code() {
        let code: Vec<u8> = (0..512_u32).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        let [(at, first), (next, core)] = before(&code, &[7; 3000], 40 << 21).unwrap();
        assert_eq!((at, next, core.len()), (0, 512, 3000));
        assert_eq!(first[..440], code[..440]);
        // sfdisk reads it as every other program does.
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(40 << 30).unwrap();
        file.as_file().write_all_at(&first, 0).unwrap();
        let mut sfdisk = sh::command(sh::which("sfdisk").unwrap());
        let said = sh::output(sfdisk.arg("--dump").arg(file.path())).unwrap();
        let line = said.lines().last().unwrap().replace(' ', "");
        assert!(line.ends_with(&format!("start=2048,size={},type=83,bootable", (40 << 21) - 2048)), "{said}");
    }

    #[test]
    fn a_loader_that_would_reach_into_the_partition_is_refused() {
        assert!(before(&[0; 512], &vec![0; 2047 * 512], 1 << 21).is_ok());
        assert!(before(&[0; 512], &vec![0; 2047 * 512 + 1], 1 << 21).is_err());
        assert!(before(&[0; 100], &[0; 512], 1 << 21).is_err());
    }
}
