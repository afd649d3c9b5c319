//! What a box has beside its system for each of Vagrant's providers: how its disk is written, and what says so.

use std::{fs, path::Path};

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

/// What runs a lab's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Provider {
    Libvirt,
    Virtualbox,
}

impl Provider {
    /// The box's file.
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Libvirt => "sluice-debian12.box",
            Self::Virtualbox => "sluice-debian12-virtualbox.box",
        }
    }

    /// The disk's file in the box.
    pub(super) fn disk(self) -> &'static str {
        match self {
            Self::Libvirt => "box.img",
            Self::Virtualbox => "box-disk001.vmdk",
        }
    }

    /// In which form `qemu-img convert` writes the disk, packed.
    pub(super) fn form(self) -> &'static [&'static str] {
        match self {
            Self::Libvirt => &["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
            Self::Virtualbox => &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        }
    }

    /// Writes what tells Vagrant and the provider about a disk of `size` GiB; the names of the files.
    pub(super) fn describe(self, folder: &Path, size: u64) -> Result<Vec<&'static str>> {
        let mut files = vec![("Vagrantfile", self.settings().to_owned())];
        match self {
            Self::Libvirt => {
                let metadata = json!({"provider": "libvirt", "format": "qcow2", "virtual_size": size});
                files.push(("metadata.json", metadata.to_string()));
            }
            Self::Virtualbox => {
                files.push(("metadata.json", json!({"provider": "virtualbox"}).to_string()));
                files.push(("box.ovf", machine(self.disk(), size << 30)));
            }
        }
        for (name, text) in &files {
            fs::write(folder.join(name), text)?;
        }
        Ok(files.into_iter().map(|(name, _)| name).collect())
    }

    /// What every machine made of it begins with.
    fn settings(self) -> &'static str {
        match self {
            Self::Libvirt => {
                "\
Vagrant.configure('2') do |config|
  config.vm.provider(:libvirt) { |machine| machine.disk_bus = 'virtio' }
end
"
            }
            // Of the first adapter, whose network each machine has for itself. The first half is VirtualBox's own.
            Self::Virtualbox => {
                "\
Vagrant.configure('2') do |config|
  config.vm.base_mac = '080027512CE0'
end
"
            }
        }
    }
}

/// The machine in the Open Virtualization Format 1.0 (DMTF DSP0243), as VirtualBox imports it: hardware that both it and the
/// box's kernel know. The numbers of `ResourceType` are those of CIM_ResourceAllocationSettingData.
fn machine(disk: &str, bytes: u64) -> String {
    let cim = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2";
    let ovf = "http://schemas.dmtf.org/ovf/envelope/1";
    format!(
        r#"<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="{ovf}" xmlns:ovf="{ovf}"
  xmlns:rasd="{cim}/CIM_ResourceAllocationSettingData" xmlns:vssd="{cim}/CIM_VirtualSystemSettingData">
  <References>
    <File ovf:id="file1" ovf:href="{disk}"/>
  </References>
  <DiskSection>
    <Info>The disk that it boots from</Info>
    <Disk ovf:capacity="{bytes}" ovf:diskId="vmdisk1" ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection>
    <Info>Where Vagrant reaches it</Info>
    <Network ovf:name="NAT">
      <Description>A network of its own</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="sluice-debian12">
    <Info>A machine of a lab</Info>
    <OperatingSystemSection ovf:id="96">
      <Info>Debian, 64 bits</Info>
      <Description>Debian_64</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>A lab says its own processors and memory</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>sluice-debian12</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>virtualbox-2.2</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:ElementName>processors</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>2</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits>
        <rasd:ElementName>memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>2048</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:ElementName>SATA controller</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>AHCI</rasd:ResourceSubType>
        <rasd:ResourceType>20</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:ElementName>disk</rasd:ElementName>
        <rasd:HostResource>/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>NAT</rasd:Connection>
        <rasd:ElementName>network</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>E1000</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(provider: Provider) -> (tempfile::TempDir, Vec<&'static str>) {
        let folder = tempfile::tempdir().unwrap();
        let files = provider.describe(folder.path(), 20).unwrap();
        (folder, files)
    }

    #[test]
    fn vagrant_is_told_whose_box_it_is() {
        for (provider, name) in [(Provider::Libvirt, "libvirt"), (Provider::Virtualbox, "virtualbox")] {
            let (folder, files) = described(provider);
            assert!(files.iter().all(|file| folder.path().join(file).is_file()) && files.contains(&"Vagrantfile"));
            let metadata = fs::read(folder.path().join("metadata.json")).unwrap();
            let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
            assert_eq!(metadata["provider"], name);
            if provider == Provider::Libvirt {
                assert_eq!(metadata["virtual_size"], 20);
            }
        }
    }

    /// What a form of disk may hold is for qemu-img to say; it reads back what it wrote.
    #[test]
    fn a_disk_is_written_in_the_form_that_is_said_of_it() {
        for (provider, form) in [(Provider::Libvirt, "qcow2"), (Provider::Virtualbox, "vmdk")] {
            let folder = tempfile::tempdir().unwrap();
            let (raw, disk) = (folder.path().join("raw"), folder.path().join(provider.disk()));
            fs::write(&raw, vec![7; 3 << 20]).unwrap();
            let qemu = |words: &[&str]| crate::sh::output(crate::sh::command("qemu-img").args(words)).unwrap();
            let (from, to) = (raw.to_str().unwrap(), disk.to_str().unwrap());
            qemu(&[&["convert", "-f", "raw"], provider.form(), &[from, to]].concat());
            let said: serde_json::Value = serde_json::from_str(&qemu(&["info", "--output=json", to])).unwrap();
            assert_eq!((said["format"].as_str(), said["virtual-size"].as_u64()), (Some(form), Some(3 << 20)));
            qemu(&["compare", from, to]);
        }
    }

    #[test]
    fn the_machine_names_its_disk_and_every_item_once() {
        let (folder, files) = described(Provider::Virtualbox);
        assert!(files.contains(&"box.ovf"));
        let text = fs::read_to_string(folder.path().join("box.ovf")).unwrap();
        assert!(text.contains(r#"ovf:href="box-disk001.vmdk""#) && text.contains(r#"ovf:capacity="21474836480""#));
        // Each element that begins ends, in order, and no number of an item is there twice.
        let (mut open, mut numbers) = (Vec::new(), Vec::new());
        for tag in text.split('<').skip(1).filter(|tag| !tag.starts_with('?')) {
            let (inside, after) = tag.split_once('>').unwrap();
            let name = inside.split_whitespace().next().unwrap();
            match name.strip_prefix('/') {
                Some(ended) => assert_eq!(open.pop(), Some(ended)),
                None if inside.ends_with('/') => {}
                None => open.push(name),
            }
            if name == "rasd:InstanceID" {
                numbers.push(after.trim().parse::<u32>().unwrap());
            }
        }
        assert_eq!((open, numbers), (Vec::new(), vec![1, 2, 3, 4, 5]));
    }
}
