//! Programs that are kept between processes: the verifier looks at a program for up to a fifth of a second, and a process that
//! takes another one's place mostly has the same programs on the same maps. They are pinned in a folder named after all that
//! they are made of, from which the next process takes them; whatever differs gives another name, and nothing to take.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use sluice_ebpf_common::maps;

use crate::attach::{self, GUARD_PROGRAMS, SOCKET_PROGRAMS};
use crate::pins::{Pins, remove_pin};
use crate::{Error, object, sys};

/// Puts what an earlier process kept of programs like these in their place.
pub(crate) fn take(ebpf: &mut Ebpf, pins: &Pins, place: impl Fn(&str) -> PathBuf) -> Result<(), Error> {
    let folder = pins.programs(&origin(place)?);
    for (name, program) in ebpf.programs_mut() {
        let pin = folder.join(name);
        if attach::is_needed(pins, name, program)
            && pin.exists()
            && let Some(kept) = open(name, program, &pin).transpose()
        {
            *program = kept.map_err(|error| Error::ebpf(format!("take over the program {}", pin.display()), error))?;
        }
    }
    Ok(())
}

/// Keeps programs that are loaded onto the maps of the set and needed there, and forgets all others.
pub(crate) fn keep(ebpf: &Ebpf, pins: &Pins) -> Result<(), Error> {
    let origin = origin(|name| pins.map(name))?;
    let folder = pins.add_programs(&origin)?;
    for (name, program) in ebpf.programs() {
        let pin = folder.join(name);
        match program.fd() {
            Ok(fd) if attach::is_needed(pins, name, program) => {
                if !pin.exists() {
                    let failed = |error| Error::system(format!("pin {}", pin.display()), error);
                    sys::pin(fd.as_fd(), &pin).map_err(failed)?;
                }
            }
            _ => remove_pin(&pin)?,
        }
    }
    pins.remove_other_programs(&origin)
}

/// A name for what programs are made of: the object, and the very maps that they work on, by the kernel's numbers. Those are no
/// other map's as long as the programs are kept.
fn origin(place: impl Fn(&str) -> PathBuf) -> Result<String, Error> {
    let mut hasher = DefaultHasher::new();
    object::number().hash(&mut hasher);
    for name in maps::ALL {
        let path = place(name);
        let map = MapInfo::from_pin(&path).map_err(|error| Error::ebpf(format!("open {}", path.display()), error))?;
        map.id().hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// A pinned program of the same kind; `None` of a kind that is not kept.
fn open(name: &str, like: &Program, pin: &Path) -> Result<Option<Program>, ProgramError> {
    let hook = SOCKET_PROGRAMS.iter().find(|(known, _)| *known == name);
    let guard = GUARD_PROGRAMS.iter().find(|(known, _)| *known == name);
    Ok(Some(match (like, hook, guard) {
        (Program::CgroupSockAddr(_), Some((_, hook)), _) => {
            Program::CgroupSockAddr(CgroupSockAddr::from_pin(pin, *hook)?)
        }
        (Program::CgroupSock(_), _, Some((_, guard))) => Program::CgroupSock(CgroupSock::from_pin(pin, *guard)?),
        (Program::SchedClassifier(_), ..) => Program::SchedClassifier(SchedClassifier::from_pin(pin)?),
        (Program::Xdp(_), ..) => Program::Xdp(Xdp::from_pin(pin, XdpAttachType::Interface)?),
        _ => return Ok(None),
    }))
}
