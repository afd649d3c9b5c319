# The labs: which machines each has and what runs on them. `load`ed by the Vagrantfile of each lab's folder.
#
# Machines are provisioned from target/dist (cargo xtask dist) and the distribution's own packages; nothing else is
# downloaded. What machines need of each other (the token that nodes join with, the servers' common keys) is carried by this
# machine, in the lab's folder under .vagrant: so they come up one after the other.

require 'fileutils'

ENV['VAGRANT_NO_PARALLEL'] = 'yes'
# Of triggers, those that run when a whole `vagrant up` is done, and no machine is locked any more.
ENV['VAGRANT_EXPERIMENTAL'] = 'typed_triggers'

ROOT = File.expand_path('..', __dir__)
# VirtualBox lets host-only networks have addresses of this range without being asked.
NET = '192.168.56'

# Each machine: its name, the last part of its address, what it is.
#   up: control plane and node   server: control plane   node: joins   etcd: a member of the etcd   client: neither
LABS = {
  'single' => [['node1', 11, %w[up]]],
  'cluster' => [['server1', 11, %w[server]], ['node1', 21, %w[node]], ['node2', 22, %w[node]]],
  'ha' => [['etcd1', 31, %w[etcd]], ['etcd2', 32, %w[etcd]], ['etcd3', 33, %w[etcd]],
           ['server1', 11, %w[server]], ['server2', 12, %w[server]], ['server3', 13, %w[server]],
           ['node1', 21, %w[node]], ['node2', 22, %w[node]]],
  'bench' => [['balancer', 11, %w[up]], ['backend1', 21, %w[node]], ['backend2', 22, %w[node]], ['client', 41, %w[client]]],
}.freeze

# A processor that cannot run machines may have a /dev/kvm all the same.
KVM = File.exist?('/dev/kvm') && File.read('/proc/cpuinfo').match?(/^flags.*\b(vmx|svm)\b/)

# The newest package. Only `up` needs one: without, it says that this file must exist.
def package
  found = Dir.glob("#{ROOT}/target/dist/sluice_*_amd64.deb").reject { |file| file.include?('_0.0.1_') }
  found.max_by { |file| File.mtime(file) } || "#{ROOT}/target/dist/made-by-cargo-xtask-dist.deb"
end

def lab(config, name)
  machines = LABS.fetch(name)
  kept = File.join(Dir.pwd, '.vagrant')
  address = ->(part) { "#{NET}.#{part}" }
  with = ->(role) { machines.select { |_, _, roles| roles.include?(role) } }
  etcd = with.call('etcd').map { |_, part, _| "http://#{address.call(part)}:2379" }
  servers = (with.call('server') + with.call('up')).map { |_, part, _| "https://#{address.call(part)}:6443" }
  first = (with.call('server') + with.call('up')).first[0]

  # Both are uploaded by name, and filled by the first server's trigger before any other machine begins.
  FileUtils.mkdir_p(kept)
  %w[join.yaml pki.tar].each { |file| FileUtils.touch(File.join(kept, file)) }

  config.vm.box = ENV.fetch('SLUICE_BOX', 'sluice/debian12')
  config.vm.synced_folder '.', '/vagrant', disabled: true
  config.vm.provider(:libvirt) do |machine, override|
    machine.cpus = 2
    machine.memory = 1536
    machine.driver = KVM ? 'kvm' : 'qemu'
    next if KVM

    # Emulation: right, and slow.
    machine.cpu_mode = 'maximum'
    override.vm.boot_timeout = 1800
    override.ssh.connect_timeout = 120
  end
  config.vm.provider(:virtualbox) do |machine|
    machine.cpus = 2
    machine.memory = 2048
  end

  machines.each do |host, part, roles|
    config.vm.define(host, primary: host == first) do |machine|
      machine.vm.hostname = host
      # Without libvirt's translation of addresses: where the host filters bridged packets, it would change those to pods.
      machine.vm.network :private_network, ip: address.call(part), libvirt__forward_mode: 'none',
                                           libvirt__dhcp_enabled: false
      machine.vm.provision :file, source: package, destination: '/tmp/sluice.deb'
      machine.vm.provision :file, source: File.join(__dir__, 'provision.sh'), destination: '/tmp/provision.sh'
      machine.vm.provision :file, source: File.join(__dir__, 'smoke.sh'), destination: '/tmp/smoke.sh'
      if host != first
        carried = { 'node' => 'join.yaml', 'server' => 'pki.tar' }.select { |role, _| roles.include?(role) }
        carried.each_value do |file|
          machine.vm.provision :file, source: File.join(kept, file), destination: "/tmp/#{file}"
        end
      end
      machine.vm.provision :shell, inline: 'sh /tmp/provision.sh', env: {
        'HOST' => host, 'ADDRESS' => address.call(part), 'ROLES' => roles.join(' '), 'FIRST' => (host == first).to_s,
        'ETCD' => etcd.join(' '), 'SERVERS' => servers.join(' '),
        'HOSTS' => machines.map { |other, number, _| "#{address.call(number)} #{other}" }.join(';'),
        'MEMBERS' => with.call('etcd').map { |other, number, _| "#{other}=http://#{address.call(number)}:2380" }.join(',')
      }
      if host == first
        machine.trigger.after(:up) do |trigger|
          trigger.info = 'fetching what the other machines join with'
          trigger.ruby do |_env, running|
            { 'join.yaml' => 'sudo cat /root/join.yaml', 'pki.tar' => 'sudo tar -C /var/lib/sluice -c pki' }.each do |file, words|
              File.open(File.join(kept, file), 'wb', 0o600) do |out|
                running.communicate.execute(words) { |kind, data| out.write(data) if kind == :stdout }
              end
            end
          end
        end
      end
    end
  end

  # `SLUICE_STORY=no vagrant up server1` brings up a part.
  return if ENV['SLUICE_STORY'] == 'no'

  config.trigger.after('up', type: :command) do |trigger|
    trigger.info = 'the smoke story'
    names = machines.map { |host, _, _| host }
    trigger.run = { inline: "sh #{File.join(__dir__, 'story.sh')} #{first} #{names.join(' ')}" }
  end
end
