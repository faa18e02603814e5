//! A machine with a device more or less: what a launcher knows once one has come or gone while the guest runs.
//!
//! The rules are those of the file ([`crate::check`]). What is not said of a new device is filled in so that nothing of the
//! others is taken twice: the first free id, the first free address of the machine's own.

use crate::entry::DiskEntry;
use crate::error::ConfigError;
use crate::file::MachineFile;
use crate::mac::Mac;
use crate::machine::Machine;
use crate::name::DeviceId;
use crate::net::NetEntry;

impl Machine {
    /// The ids of all its devices.
    pub fn ids(&self) -> impl Iterator<Item = &DeviceId> {
        let (disks, nets) = (self.disks.iter().map(|it| &it.id), self.nets.iter().map(|it| &it.id));
        disks.chain(nets).chain(self.devices.iter().map(|it| &it.id))
    }

    /// The first `disk0`, `disk1`, ... that is free.
    fn free_id(&self, prefix: &'static str) -> DeviceId {
        let mut index = 0;
        loop {
            let id = DeviceId::numbered(prefix, index);
            if !self.ids().any(|taken| *taken == id) {
                return id;
            }
            index += 1;
        }
    }

    /// With one more disk, which comes last.
    ///
    /// # Errors
    /// What is wrong with it, or it does not go with the others.
    pub fn with_disk(&self, mut entry: DiskEntry) -> Result<Self, ConfigError> {
        entry.id.get_or_insert_with(|| self.free_id("disk").to_string());
        let mut file = MachineFile::from(self.clone());
        file.disk.push(entry);
        file.try_into()
    }

    /// With one more NIC, which comes last.
    ///
    /// # Errors
    /// What is wrong with it, or it does not go with the others.
    pub fn with_net(&self, mut entry: NetEntry) -> Result<Self, ConfigError> {
        entry.id.get_or_insert_with(|| self.free_id("net").to_string());
        if entry.mac.is_none() && entry.socket.is_none() {
            let taken =
                |mac: &Mac| self.nets.iter().filter_map(|net| net.source.own()).any(|own| own.mac == *mac);
            let free =
                (0..=self.nets.len()).map(|index| Mac::generated(&self.name, index)).find(|mac| !taken(mac));
            entry.mac = free.map(|mac| mac.to_string());
        }
        let mut file = MachineFile::from(self.clone());
        file.net.push(entry);
        file.try_into()
    }

    /// Without the device of this id, if it has one.
    pub fn remove(&mut self, id: &str) {
        self.disks.retain(|disk| disk.id.as_str() != id);
        self.nets.retain(|net| net.id.as_str() != id);
        self.devices.retain(|device| device.id.as_str() != id);
    }
}

#[cfg(test)]
mod change_test {
    use super::*;

    fn machine() -> Machine {
        "name = 'web'\nkernel = '/k'\n[[disk]]\npath = '/a'\n[[disk]]\npath = '/b'\n[[net]]\ntap = 't0'\n[[net]]\ntap = 't1'"
            .parse()
            .unwrap()
    }

    fn ids(machine: &Machine) -> Vec<&str> {
        machine.ids().map(DeviceId::as_str).collect()
    }

    #[test]
    fn a_name_that_is_free_again_is_the_next() {
        let mut machine = machine();
        machine.remove("disk0");
        machine.remove("nothing");
        assert_eq!(ids(&machine), ["disk1", "net0", "net1"]);
        let more = machine.with_disk(DiskEntry::from_flag("path=/c").unwrap()).unwrap();
        assert_eq!(ids(&more), ["disk1", "disk0", "net0", "net1"]);
        let more = more.with_disk(DiskEntry::from_flag("path=/d,id=data").unwrap()).unwrap();
        assert_eq!(ids(&more), ["disk1", "disk0", "data", "net0", "net1"]);
        assert_eq!(serde_json::to_string(&more).unwrap().parse::<Machine>().unwrap(), more);
    }

    #[test]
    fn addresses_are_not_given_twice() {
        let mut machine = machine();
        let macs = |machine: &Machine| -> Vec<_> {
            machine.nets.iter().map(|net| net.source.own().unwrap().mac).collect()
        };
        let [first, second] = macs(&machine)[..] else { panic!() };
        machine.remove("net0");
        let more = machine.with_net(NetEntry::from_flag("tap=t2").unwrap()).unwrap();
        assert_eq!((macs(&more), ids(&more).last()), (vec![second, first], Some(&"net0")));
        let more = more.with_net(NetEntry::from_flag("tap=t3").unwrap()).unwrap();
        let [_, _, third] = macs(&more)[..] else { panic!() };
        assert!(third != first && third != second);
        // Where somebody else has the card, the address is his.
        assert!(more.with_net(NetEntry::from_flag("socket=/s").unwrap()).is_ok());
    }

    #[test]
    fn the_rules_are_those_of_the_file() {
        let machine = machine();
        let refused =
            |flag: &str| machine.with_disk(DiskEntry::from_flag(flag).unwrap()).unwrap_err().to_string();
        assert!(
            refused("path=/c,id=disk1").contains("another device has it"),
            "{}",
            refused("path=/c,id=disk1")
        );
        assert!(refused("path=/c,queues=65").contains("must be 1 to 64"));
        assert!(refused("readonly").contains("needs `path` or `socket`"));
        let mut full = machine.clone();
        while let Ok(more) = full.with_disk(DiskEntry::from_flag("path=/c").unwrap()) {
            full = more;
        }
        assert_eq!(full.ids().count(), 30);
    }
}
