"""Allow-list of system calls by name, and the number of each call on two architectures.

The numbers are those of the Linux headers (asm/unistd_64.h for x86-64, asm-generic/unistd.h for aarch64).
Calls that are in no group are refused, so new calls of later kernels are refused until they have been reviewed.
"""

from __future__ import annotations

# files, directories and other objects on the tmpfs
FILES = frozenset(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range open openat creat
    stat fstat lstat newfstatat statx lseek access faccessat faccessat2 readlink readlinkat getdents getdents64
    getcwd chdir fchdir umask mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
    symlinkat truncate ftruncate fallocate fsync fdatasync sync_file_range fadvise64 flock chmod fchmod fchmodat
    fchmodat2 utime utimes utimensat futimesat statfs fstatfs copy_file_range sendfile splice tee getxattr
    lgetxattr fgetxattr listxattr llistxattr flistxattr
    """.split()
)
MEMORY = frozenset(
    """
    mmap mprotect munmap mremap madvise brk msync mincore mlock munlock
    """.split()
)
# threads, time, signals to the own process, process information; seccomp.py restricts clone, kill, prctl, prlimit64
PROCESS = frozenset(
    """
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause alarm
    setitimer getitimer futex futex_waitv set_tid_address set_robust_list get_robust_list rseq arch_prctl
    membarrier exit exit_group getrandom restart_syscall sched_yield sched_getaffinity sched_getparam
    sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu nanosleep clock_nanosleep
    clock_gettime clock_getres gettimeofday time times getpid getppid gettid getuid geteuid getgid getegid
    getresuid getresgid getgroups getpgrp getpgid getsid getrusage getrlimit getpriority uname sysinfo prlimit64
    prctl clone kill tgkill
    """.split()
)
# pipes, polling and socket pairs; seccomp.py restricts fcntl, ioctl and socketpair. socket() is in no group
EVENTS = frozenset(
    """
    pipe pipe2 dup dup2 dup3 fcntl ioctl select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl
    epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime
    socketpair sendto recvfrom sendmsg recvmsg shutdown getsockopt setsockopt getsockname getpeername
    """.split()
)
# additional calls for a shell: programs, jobs, any signal inside its own pid namespace
SHELL = frozenset(
    """
    fork vfork execve execveat wait4 waitid setrlimit setsid setpgid tkill rt_sigqueueinfo mknod mknodat chown
    fchown lchown fchownat setpriority sync syncfs inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete readahead signalfd signalfd4
    """.split()
)
# calls that only the zygote may use
ZYGOTE = frozenset(
    """
    fork vfork wait4 waitid setrlimit setsid setuid setgid setreuid setregid setresuid setresgid setgroups
    capset capget seccomp chown fchownat mount umount2 pidfd_open landlock_create_ruleset landlock_add_rule
    landlock_restrict_self
    """.split()
)
ABSENT = frozenset({"clone3"})  # glibc falls back to clone only on ENOSYS; clone3 hides its flags behind a pointer
UNSUPPORTED = frozenset(  # ENOTSUP, so that `cp -a` and `sed -i` assume a file system without attributes
    "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr".split()
)

_NAME_X86_64_AARCH64 = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 close:3:57 close_range:436:436 open:2:- openat:257:56 creat:85:- stat:4:- fstat:5:80
lstat:6:- newfstatat:262:- statx:332:291 lseek:8:62 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:-
readlinkat:267:78 getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 umask:95:166 mkdir:83:-
mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 link:86:-
linkat:265:37 symlink:88:- symlinkat:266:36 truncate:76:45 ftruncate:77:46 fallocate:285:47 fsync:74:82
fdatasync:75:83 sync_file_range:277:84 fadvise64:221:223 flock:73:32 chmod:90:- fchmod:91:52 fchmodat:268:53
fchmodat2:452:452 utime:132:- utimes:235:- utimensat:280:88 futimesat:261:- statfs:137:43 fstatfs:138:44
copy_file_range:326:285 sendfile:40:71 splice:275:76 tee:276:77 getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10
listxattr:194:11 llistxattr:195:12 flistxattr:196:13 mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216
madvise:28:233 brk:12:214 msync:26:227 mincore:27:232 mlock:149:228 munlock:150:229 rt_sigaction:13:134
rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133
sigaltstack:131:132 pause:34:- alarm:37:- setitimer:38:103 getitimer:36:102 futex:202:98 futex_waitv:449:449
set_tid_address:218:96 set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 arch_prctl:158:- membarrier:324:283
exit:60:93 exit_group:231:94 getrandom:318:278 restart_syscall:219:128 sched_yield:24:124 sched_getaffinity:204:123
sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126
getcpu:309:168 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169
time:201:- times:100:153 getpid:39:172 getppid:110:173 gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176
getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156
getrusage:98:165 getrlimit:97:163 getpriority:140:141 uname:63:160 sysinfo:99:179 prlimit64:302:261 prctl:157:167
clone:56:220 kill:62:129 tgkill:234:131 pipe:22:- pipe2:293:59 dup:32:23 dup2:33:- dup3:292:24 fcntl:72:25 ioctl:16:29
select:23:- pselect6:270:72 poll:7:- ppoll:271:73 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21
epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 timerfd_create:283:85
timerfd_settime:286:86 timerfd_gettime:287:87 socketpair:53:199 sendto:44:206 recvfrom:45:207 sendmsg:46:211
recvmsg:47:212 shutdown:48:210 getsockopt:55:209 setsockopt:54:208 getsockname:51:204 getpeername:52:205 fork:57:-
vfork:58:- execve:59:221 execveat:322:281 wait4:61:260 waitid:247:95 setrlimit:160:164 setsid:112:157 setpgid:109:154
tkill:200:130 rt_sigqueueinfo:129:138 mknod:133:- mknodat:259:33 chown:92:- fchown:93:55 lchown:94:- fchownat:260:54
setpriority:141:140 sync:162:81 syncfs:306:267 inotify_init:253:- inotify_init1:294:26 inotify_add_watch:254:27
inotify_rm_watch:255:28 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109
timer_delete:226:111 readahead:187:213 signalfd:282:- signalfd4:289:74 setuid:105:146 setgid:106:144 setreuid:113:145
setregid:114:143 setresuid:117:147 setresgid:119:149 setgroups:116:159 capset:126:91 capget:125:90 seccomp:317:277
mount:165:40 umount2:166:39 pidfd_open:434:434 landlock_create_ruleset:444:444 landlock_add_rule:445:445
landlock_restrict_self:446:446 clone3:435:435 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14
lremovexattr:198:15 fremovexattr:199:16
"""

MACHINES = ("x86_64", "aarch64")


def numbers(machine: str) -> dict[str, int]:
    """Call name -> number on `machine`, without calls that it does not have. Raises ValueError if it is unsupported."""
    if machine not in MACHINES:
        raise ValueError(f"no system call table for {machine!r}; have: {', '.join(MACHINES)}")
    column = 1 + MACHINES.index(machine)
    rows = (row.split(":") for row in _NAME_X86_64_AARCH64.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}
