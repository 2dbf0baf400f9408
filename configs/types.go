package configs

// Config is one node's configuration: a database host, a drill and restore
// node, or both on one machine.
type Config struct {
	Format       int           `yaml:"format" required:"yes" enum:"1" doc:"Version of this document."`
	Node         Node          `yaml:"node" required:"yes" doc:"This node: where it keeps its state and how it is reached."`
	Repository   Repository    `yaml:"repository" required:"yes" doc:"The zones that hold the backups and the keys that seal and sign them."`
	Clusters     []Cluster     `yaml:"clusters" doc:"The PostgreSQL clusters under protection."`
	Environments []Environment `yaml:"environments" doc:"Places where restores and drills land."`
	Drills       []Drill       `yaml:"drills" doc:"Rehearsals of recovery."`
	Notify       []Notify      `yaml:"notify" doc:"Who is told about what."`
	Approvals    *Approvals    `yaml:"approvals" doc:"Who must approve plans that destroy; left out: a person's word to the daemon is enough."`

	// Path is the file that the configuration was read from, "" for none.
	Path string `yaml:"-"`
}

// Node is the machine that this configuration is for.
type Node struct {
	Name          string  `yaml:"name" required:"yes" format:"name" doc:"The node's name, unique in the repository: the origin of its ledger."`
	State         string  `yaml:"state" default:"/var/lib/holdfast" doc:"Directory of jobs, spool and caches; losing it loses no backup."`
	Socket        string  `yaml:"socket" default:"/run/holdfast/holdfast.sock" doc:"Unix socket of the API."`
	Jobs          Jobs    `yaml:"jobs" default:"sqlite" doc:"Where jobs are kept: sqlite in the state directory, or a PostgreSQL database when several nodes share the work."`
	Listen        string  `yaml:"listen" doc:"host:port of the API and pages; left out, the socket alone. Off loopback it needs tls and tokens."`
	TLS           *TLS    `yaml:"tls" doc:"Certificate of listen."`
	Tokens        *Secret `yaml:"tokens" doc:"Sign-in for listen: lines of NAME ROLE SHA256-OF-TOKEN; roles viewer, operator, approver, admin."`
	Metrics       bool    `yaml:"metrics" default:"true" doc:"Serve /metrics on the socket and on listen."`
	AllowIdentity bool    `yaml:"allow_identity" default:"false" doc:"Accept that a node which reaches a live cluster holds a data identity: demos, tests, a single machine."`
	Jurisdiction  string  `yaml:"jurisdiction" doc:"Where this node is in law: what clusters[].residency says of restores and keys is held against it."`
	Scrub         Scrub   `yaml:"scrub" doc:"Rolling verification of every copy in every zone, by nodes that take snapshots."`
	Limits        Limits  `yaml:"limits" doc:"What this node may use."`
}

// Scrub bounds rolling verification.
type Scrub struct {
	Every Duration `yaml:"every" default:"14d" min:"1s" doc:"Every copy in every zone is read once in it and compared with its digest."`
	Probe Duration `yaml:"probe" default:"7d" min:"1h" doc:"What each zone really does (conditional creation, versions, locks) is tried anew once in it and recorded signed."`
	Rate  Rate     `yaml:"rate" default:"16MiB/s" doc:"Bytes per second read from each zone for it at most; 0 is no limit."`
}

// Jobs says where durable jobs live: SQLite when Postgres is nil.
type Jobs struct {
	Postgres *Secret `yaml:"postgres" doc:"Connection string of the jobs database."`
}

// TLS is a certificate and its key, both PEM.
type TLS struct {
	Certificate Secret `yaml:"certificate" required:"yes" doc:"Certificate chain, PEM."`
	Key         Secret `yaml:"key" required:"yes" doc:"Private key, PEM."`
}

// Limits bound what a node uses.
type Limits struct {
	Memory  Size `yaml:"memory" default:"512MiB" min:"64MiB" doc:"Memory for buffers of snapshots and restores."`
	Upload  Rate `yaml:"upload" default:"0" doc:"Bytes per second sent to all zones together; 0 is no limit. Snapshots and copies from zone to zone wait for it; WAL and notes never do, and their bytes are taken from the others' share, of which a tenth is always left."`
	Workers int  `yaml:"workers" default:"2" min:"1" doc:"Compressing and sealing workers."`
	Reserve Size `yaml:"reserve" default:"64MiB" doc:"A file of this size in the state directory, given up when its disk is full and made again when there is room; 0: none."`
}

// Repository is the vault: its zones, and who seals, signs and is trusted.
type Repository struct {
	Zones                []Zone          `yaml:"zones" required:"yes" doc:"Object storage, each in another place."`
	WriteQuorum          int             `yaml:"write_quorum" min:"1" doc:"Zones that must hold a write before it is acknowledged; left out, more than half of the zones and at most all but one."`
	AcceptStopOnZoneLoss bool            `yaml:"accept_stop_on_zone_loss" default:"false" doc:"Accept that writes stop when one zone is lost: a quorum of all zones, or a single zone."`
	ObjectLock           ObjectLock      `yaml:"object_lock" doc:"How objects in S3 zones are locked; how long follows from retention."`
	Recipients           []string        `yaml:"recipients" doc:"age recipients that can open data; all post-quantum (age1pq1…) or all X25519 (age1…)."`
	IndexIdentity        *Secret         `yaml:"index_identity" doc:"age identity that opens manifests, page maps and WAL indexes, never data; of the recipients' kind."`
	SigningKey           *Secret         `yaml:"signing_key" doc:"This node's note signing key."`
	TrustedSigners       []TrustedSigner `yaml:"trusted_signers" doc:"Whose notes this node believes, and about what."`
	Witnesses            []Witness       `yaml:"witnesses" doc:"Who cosigns the checkpoints of this node's ledger, so that it cannot show two histories; one that does not answer holds nothing up."`
}

// Witness is a cosigning witness (c2sp.org/tlog-witness), best run by somebody else.
type Witness struct {
	URL string `yaml:"url" required:"yes" doc:"Where it takes checkpoints, without /add-checkpoint; https, except on loopback."`
	Key string `yaml:"key" required:"yes" doc:"Its verifier key, as holdfast witness prints it."`
}

// ObjectLock is how S3 objects are locked.
type ObjectLock struct {
	Mode string `yaml:"mode" default:"none" enum:"none|governance|compliance" doc:"none, governance, or compliance (which needs a typed confirmation once)."`
}

// Zone is one place of object storage: exactly one of S3 and Directory.
type Zone struct {
	Name         string `yaml:"name" required:"yes" format:"name" doc:"The zone's name."`
	Jurisdiction string `yaml:"jurisdiction" doc:"Where the zone is in law; what clusters[].residency names."`
	S3           *S3    `yaml:"s3" doc:"A bucket of any S3 service."`
	Directory    string `yaml:"directory" doc:"An absolute directory, normally a mount; Holdfast never creates it."`
	ObjectLock   string `yaml:"object_lock" enum:"none|governance|compliance" doc:"Overrides repository.object_lock.mode; left out: that mode for s3, none for a directory."`
}

// S3 is a bucket, or a prefix of one.
type S3 struct {
	Endpoint          string       `yaml:"endpoint" doc:"URL of the service; left out: AWS by region. https, except on loopback."`
	Region            string       `yaml:"region" required:"yes" doc:"Region, as the service calls it."`
	Bucket            string       `yaml:"bucket" required:"yes" doc:"Bucket."`
	Prefix            string       `yaml:"prefix" doc:"Prefix of every name, without slashes at its ends."`
	PathStyle         bool         `yaml:"path_style" default:"false" doc:"Address the bucket in the path instead of the host name."`
	CA                *Secret      `yaml:"ca" doc:"PEM certificates to trust instead of the system's."`
	Credentials       Credentials  `yaml:"credentials" required:"yes" doc:"instance, web_identity, {file: …} or {credential: …}; a file holds access_key_id and secret_access_key."`
	LedgerCredentials *Credentials `yaml:"ledger_credentials" doc:"A second pair, for ledger/<origin>/ and proofs/<origin>/ alone: a drill node whose credentials only read."`
	DeleteCredentials *Credentials `yaml:"delete_credentials" doc:"A pair that signs removals of versions alone, so that the others need no right to delete."`
}

// TrustedSigner is a key, and what its notes may say of which clusters.
type TrustedSigner struct {
	Key      string   `yaml:"key" required:"yes" doc:"Note verifier key: name+hash+base64."`
	Clusters []string `yaml:"clusters" doc:"Clusters that it may speak of; left out: all."`
	May      []string `yaml:"may" required:"yes" enum:"snapshot|wal|tombstone|ledger" doc:"What it may vouch for: snapshot, wal, tombstone, ledger."`
}

// Environment is a directory with PostgreSQL's programs in which restores land.
type Environment struct {
	Name         string  `yaml:"name" required:"yes" format:"name" doc:"The environment's name."`
	Directory    string  `yaml:"directory" required:"yes" doc:"Absolute directory under which restores are made and removed."`
	Jurisdiction string  `yaml:"jurisdiction" doc:"Where the environment is in law; left out: where its node is."`
	Binaries     string  `yaml:"binaries" default:"/usr/lib/postgresql/{major}/bin" doc:"PostgreSQL's programs; {major} is the server's major version."`
	User         string  `yaml:"user" doc:"Operating system user that runs the restored server when Holdfast is root; left out: postgres then, else Holdfast's own."`
	Identity     *Secret `yaml:"identity" doc:"age identity that opens data."`
}

// Drill is one rehearsal.
type Drill struct {
	Name        string      `yaml:"name" required:"yes" format:"name" doc:"The drill's name."`
	Cluster     string      `yaml:"cluster" required:"yes" format:"name" doc:"One of clusters[].name."`
	Environment string      `yaml:"environment" required:"yes" format:"name" doc:"One of environments[].name."`
	Schedule    Cron        `yaml:"schedule" doc:"When it is due; left out: only by drill run."`
	Select      string      `yaml:"select" default:"latest" enum:"latest|oldest|random|random_time|stalest" doc:"What is restored."`
	Zone        string      `yaml:"zone" format:"name" doc:"Restore from this zone alone; left out: from all."`
	Level       string      `yaml:"level" default:"L8" enum:"L0|L1|L2|L3|L4|L5|L6|L7|L8" doc:"The highest level of the ladder to run."`
	Objectives  Objectives  `yaml:"objectives" doc:"Instead of the cluster's."`
	Limits      DrillLimits `yaml:"limits" doc:"What one run may use."`
	Checks      []Check     `yaml:"checks" doc:"Assertions on the restored database: level L8."`
}

// DrillLimits bound one run of a drill.
type DrillLimits struct {
	Disk Size     `yaml:"disk" default:"0" doc:"Disk that a run may use; 0: what the environment's file system has free."`
	Time Duration `yaml:"time" default:"4h" min:"1m" doc:"A run that takes longer is stopped: timed_out."`
}

// Check is one question to a restored database and its only right answer.
type Check struct {
	Name     string `yaml:"name" required:"yes" format:"name" doc:"The check's name, unique in its drill."`
	Database string `yaml:"database" required:"yes" doc:"Database to ask."`
	SQL      string `yaml:"sql" required:"yes" doc:"One query that answers one row of one column."`
	Expect   string `yaml:"expect" required:"yes" doc:"The answer as text."`
}

// Approvals says who must approve plans that destroy.
type Approvals struct {
	Needed    int      `yaml:"needed" required:"yes" min:"1" doc:"So many of the approvers must sign one plan."`
	Approvers []string `yaml:"approvers" required:"yes" doc:"Note verifier keys, as keys new approver prints: of people, never of nodes."`
	Valid     Duration `yaml:"valid" default:"72h" min:"1m" doc:"An approval counts for so long."`
}

// Notify is one receiver.
type Notify struct {
	Name string   `yaml:"name" required:"yes" format:"name" doc:"The receiver's name."`
	URL  Secret   `yaml:"url" required:"yes" doc:"Webhook that gets a JSON POST."`
	On   []string `yaml:"on" required:"yes" enum:"incident|drill|snapshot|certificate" doc:"What it is told: incident (opened and closed), drill, snapshot, certificate."`
}
