#!/usr/bin/perl
# Stands in for systemctl on machines of the book's test, which have no service manager: it does what the units on the
# machine say, as far as the book needs it. A unit's output goes to /var/log/<unit>.log, where the stand-in for
# journalctl reads it.
use strict;
use warnings;
use POSIX ();
use Socket;

my $now = grep { $_ eq '--now' } @ARGV;
my ($verb, @units) = grep { !/^-/ } @ARGV;
$verb //= '';
mkdir '/run/units';

sub unit {
    my ($name) = @_;
    my %unit = (name => $name);
    for my $dir ('/etc/systemd/system', '/usr/lib/systemd/system', '/lib/systemd/system') {
        open my $file, '<', "$dir/$name.service" or next;
        while (<$file>) {
            push @{$unit{$1}}, $2 if /^(\w+)=(.*)$/;
        }
        return \%unit;
    }
    return;
}

sub pid {
    my ($name) = @_;
    open my $file, '<', "/run/units/$name.pid" or return;
    chomp(my $pid = <$file> // '');
    return $pid =~ /^\d+$/ && -e "/proc/$pid/exe" && readlink("/proc/$pid/exe") ? $pid : undef;
}

sub filled {
    my ($text, $unit) = @_;
    my (undef, $host) = POSIX::uname();
    return $text =~ s/%[pNn]/$unit->{name}/gr =~ s/%H/$host/gr;
}

sub words {
    my ($line, $unit) = @_;
    for (@{$unit->{Environment} // []}) { $ENV{$1} = filled($2, $unit) if /^"?(\w+)=([^"]*)"?$/ }
    for (@{$unit->{EnvironmentFile} // []}) {
        my $path = filled(s/^-//r, $unit);
        open my $file, '<', $path or next;
        while (<$file>) {
            $ENV{$1} = $2 if /^(\w+)="?([^"\n]*)"?$/;
        }
    }
    $line = filled($line, $unit);
    $line =~ s/\$\{?(\w+)\}?/$ENV{$1} \/\/ ''/ge;
    return split ' ', $line;
}

sub start {
    my ($name) = @_;
    return 1 if pid($name);
    my $unit = unit($name) or do { print STDERR "Failed to start $name.service: Unit $name.service not found.\n"; return };
    system 'sh', '-c', join ' ', words(s/^[-+!@]+//r, $unit) for @{$unit->{ExecStartPre} // []};
    my $notify = "/run/units/$name.notify";
    unlink $notify;
    socket my $socket, PF_UNIX, SOCK_DGRAM, 0 or die;
    bind $socket, sockaddr_un($notify) or die;
    chmod 0666, $notify;
    my $pid = fork // die;
    if (!$pid) {
        POSIX::setsid();
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "/var/log/$name.log";
        open STDERR, '>&', \*STDOUT;
        my @words = words($unit->{ExecStart}[0], $unit);
        delete $ENV{KUBECONFIG};
        $ENV{NOTIFY_SOCKET} = $notify;
        if (my $user = $unit->{User}[0]) {
            my (undef, undef, $uid, $gid) = getpwnam $user;
            POSIX::setgid($gid);
            POSIX::setuid($uid);
        }
        exec @words;
        die "$words[0]: $!\n";
    }
    open my $file, '>', "/run/units/$name.pid" or die;
    print $file "$pid\n";
    close $file;
    return 1 unless ($unit->{Type}[0] // '') eq 'notify';
    for (1 .. 240) {
        my $ready = '';
        vec($ready, fileno($socket), 1) = 1;
        if (select $ready, undef, undef, 0.5) {
            recv $socket, my $said, 4096, 0;
            return 1 if $said =~ /^READY=1/m;
        }
        if (waitpid($pid, POSIX::WNOHANG()) == $pid) {
            print STDERR "Job for $name.service failed because the control process exited with error code.\n";
            return;
        }
    }
    print STDERR "Job for $name.service failed because a timeout was exceeded.\n";
    return;
}

sub stop {
    my ($name) = @_;
    my $pid = pid($name) or return 1;
    kill 'TERM', $pid;
    # Nobody tells a process that is not its parent of an end.
    select undef, undef, undef, 0.05 while pid($name);
    unlink "/run/units/$name.pid";
    return 1;
}

my $failed = 0;
for my $name (map { s/\.service$//r } @units) {
    my $good = 1;
    if ($verb eq 'start' || ($verb eq 'enable' && $now)) { $good = start($name) }
    elsif ($verb eq 'stop' || ($verb eq 'disable' && $now)) { $good = stop($name) }
    elsif ($verb eq 'restart' || ($verb eq 'try-restart' && pid($name))) { $good = stop($name) && start($name) }
    elsif ($verb eq 'reload') { kill 'HUP', pid($name) // 0 }
    elsif ($verb eq 'is-active') {
        print pid($name) ? "active\n" : "inactive\n";
        $good = pid($name);
    }
    $failed = 1 unless $good;
}
exit $failed;
