package configs

// Cluster is one PostgreSQL cluster under protection.
type Cluster struct {
	Name          string     `yaml:"name" required:"yes" format:"name" doc:"The cluster's name."`
	Connection    string     `yaml:"connection" doc:"libpq connection string without a password; left out: this node reaches no server (a drill node)."`
	Password      *Secret    `yaml:"password" doc:"Password of connection, where peer or certificates do not serve."`
	DataDirectory string     `yaml:"data_directory" doc:"PGDATA, when it is on this host; left out: taken over the replication protocol."`
	Residency     Residency  `yaml:"residency" doc:"Which zones may hold the cluster."`
	Snapshots     Snapshots  `yaml:"snapshots" doc:"When and how snapshots are taken."`
	WAL           WAL        `yaml:"wal" doc:"How the write-ahead log arrives."`
	Retention     Retention  `yaml:"retention" doc:"How long what is kept."`
	Objectives    Objectives `yaml:"objectives" doc:"What recovery must achieve."`
	Projects      *Projects  `yaml:"projects" doc:"Tenants inside the cluster."`
}

// Residency restricts placement: of copies, of environments, and of the keys that open
// data. Where either list is given, a place that does not say where it is is refused.
type Residency struct {
	Allow  []string `yaml:"allow" doc:"Jurisdictions that may hold the cluster's copies, restores, drills and data identities; left out: all that forbid leaves."`
	Forbid []string `yaml:"forbid" doc:"Jurisdictions that must not, whatever allow says."`
	Copies int      `yaml:"copies" min:"1" doc:"Zones that must hold each object in the end; left out: every allowed zone."`
}

// Snapshots says when and how snapshots are taken.
type Snapshots struct {
	Schedule   Cron     `yaml:"schedule" default:"15 */6 * * *" doc:"Cron, UTC; CRON_TZ=Europe/Rome before it for a time zone."`
	Source     string   `yaml:"source" enum:"files|stream" doc:"files reads data_directory, stream uses the replication protocol; left out: files where data_directory is given."`
	FullEvery  Duration `yaml:"full_every" default:"0s" doc:"Copy everything afresh when the last full snapshot is older; 0: never."`
	Checkpoint string   `yaml:"checkpoint" default:"fast" enum:"fast|spread" doc:"How the server makes the checkpoint that a snapshot begins with: fast at once; spread as gently as its own, and the snapshot waits for it, up to checkpoint_timeout times checkpoint_completion_target."`
	Level      string   `yaml:"level" default:"fastest" enum:"fastest|default|better" doc:"How hard zstd tries; default makes 7 % less and takes twice as long."`
	Summaries  bool     `yaml:"summaries" default:"true" doc:"Let the server's WAL summaries say what changed, where it keeps them: PostgreSQL 17.11, 18.5 and later, with summarize_wal on."`
}

// WAL says how the write-ahead log arrives.
type WAL struct {
	Mode       string   `yaml:"mode" default:"stream" enum:"stream|push" doc:"stream: a replication slot; push: archive_command calls wal push."`
	MaxLag     Duration `yaml:"max_lag" default:"5s" min:"100ms" doc:"A part-filled segment goes out at most so late."`
	Slot       string   `yaml:"slot" doc:"Replication slot of mode stream; left out: holdfast_<cluster>, - written _."`
	Spool      Size     `yaml:"spool" default:"1GiB" min:"32MiB" doc:"Disk that WAL may take in the state directory while the zones do not take it; the server keeps the rest."`
	LookAhead  int      `yaml:"look_ahead" default:"8" min:"0" doc:"Mode push: so many segments behind the one that PostgreSQL pushes are sent before it asks; 0: none."`
	CheckEvery Duration `yaml:"check_every" default:"1m" min:"1s" doc:"How often the daemon looks in the zones for WAL that one or all of them lack."`
}

// Retention is a floor and a ceiling. Counts keep the newest snapshot of each
// of the last n hours, days, ISO weeks, months and years of time_zone.
type Retention struct {
	Window       Duration `yaml:"window" default:"7d" min:"1s" doc:"Every moment of this span can be restored."`
	Hourly       int      `yaml:"hourly" default:"0" min:"0" doc:"Hours of which the last snapshot is kept."`
	Daily        int      `yaml:"daily" default:"7" min:"0" doc:"Days of which the last snapshot is kept."`
	Weekly       int      `yaml:"weekly" default:"0" min:"0" doc:"Weeks of which the last snapshot is kept."`
	Monthly      int      `yaml:"monthly" default:"0" min:"0" doc:"Months of which the last snapshot is kept."`
	Yearly       int      `yaml:"yearly" default:"0" min:"0" doc:"Years of which the last snapshot is kept."`
	TimeZone     string   `yaml:"time_zone" default:"UTC" doc:"Where days, weeks, months and years of the counts begin: a name of the tz database."`
	KeepAtLeast  Duration `yaml:"keep_at_least" min:"1s" doc:"No snapshot goes earlier; left out: the window."`
	KeepAtMost   Duration `yaml:"keep_at_most" default:"400d" min:"1m" doc:"No byte stays longer, in any zone."`
	RemovalGrace Duration `yaml:"removal_grace" default:"24h" doc:"Between the mark and the removal of its objects: longer than the longest restore."`
	Approve      bool     `yaml:"approve_shorter" default:"false" doc:"A changed policy that keeps less removes nothing before a person has approved the change."`
	RenewAfter   Duration `yaml:"renew_after" min:"1s" doc:"Pages in packs older than this are copied afresh; left out: a quarter of keep_at_most, 30d at most."`
	Logical      *Counts  `yaml:"logical" doc:"How many logical snapshots are kept; left out: as many as of the others, without the window."`
	Project      *Counts  `yaml:"project" doc:"How many snapshots of each project are kept; left out: as of logical ones that are left out."`
}

// Counts are how many snapshots of a class are kept, those that need no WAL. keep_at_most
// and removal_grace are one for all classes.
type Counts struct {
	Hourly      int      `yaml:"hourly" default:"0" min:"0" doc:"Hours of which the last snapshot is kept."`
	Daily       int      `yaml:"daily" default:"0" min:"0" doc:"Days of which the last snapshot is kept."`
	Weekly      int      `yaml:"weekly" default:"0" min:"0" doc:"Weeks of which the last snapshot is kept."`
	Monthly     int      `yaml:"monthly" default:"0" min:"0" doc:"Months of which the last snapshot is kept."`
	Yearly      int      `yaml:"yearly" default:"0" min:"0" doc:"Years of which the last snapshot is kept."`
	KeepAtLeast Duration `yaml:"keep_at_least" min:"1s" doc:"None goes earlier; left out: the counts alone keep them."`
}

// Objectives are promised times; 0 is none.
type Objectives struct {
	RPO Duration `yaml:"rpo" default:"0s" doc:"At most so much time of commits may be lost; 0: no objective."`
	RTO Duration `yaml:"rto" default:"0s" doc:"At most so long until a restored database answers; 0: no objective."`
}

// Projects says what a tenant is.
type Projects struct {
	Layout   string `yaml:"layout" required:"yes" enum:"rows|schema|database" doc:"A project is rows under one root row, a schema, or a database."`
	Registry string `yaml:"registry" required:"yes" doc:"Query that lists projects: id and name, both text."`
	Database string `yaml:"database" doc:"Layouts schema and database: where the registry is asked, and whose schemas are projects; left out: the database of connection."`
	Rows     *Rows  `yaml:"rows" doc:"Where the root rows of layout rows are."`
	Mask     []Mask `yaml:"mask" doc:"What project clone and project export write instead of a column's values."`
	Media    *Media `yaml:"media" doc:"How the files of a project that are kept outside PostgreSQL get into an export; left out: they are named as not covered."`
	Purge    Purge  `yaml:"purge" doc:"How soon a deleted project is gone."`
}

// Mask hides a column in what leaves the cluster.
type Mask struct {
	Column string `yaml:"column" required:"yes" doc:"schema.table.column, as SQL writes the names."`
	As     string `yaml:"as" required:"yes" doc:"SQL expression over the row."`
}

// Media is a command that fetches a project's files.
type Media struct {
	Command []string `yaml:"command" required:"yes" doc:"Program (absolute) and arguments. It writes into the directory HOLDFAST_MEDIA the files of project HOLDFAST_PROJECT of cluster HOLDFAST_CLUSTER, and fails when it has not got them all."`
	Within  Duration `yaml:"within" default:"1h" min:"1s" doc:"It is ended after so long."`
}

// Rows names the root table of layout rows.
type Rows struct {
	Database string `yaml:"database" required:"yes" doc:"Database of the root table."`
	Root     string `yaml:"root" required:"yes" doc:"Root table, with its schema; children are found through foreign keys."`
	Key      string `yaml:"key" required:"yes" doc:"Key column of the root table: the project's id."`
}

// Purge bounds the end of a deleted project.
type Purge struct {
	Within Duration `yaml:"within" min:"1s" doc:"By then no zone holds a copy; left out: retention's keep_at_most, removal_grace and 7d together."`
	Grace  Duration `yaml:"grace" default:"24h" doc:"Between the request and the first act that cannot be undone."`
	Early  bool     `yaml:"early" default:"false" doc:"Allow a shorter within: older snapshots are removed by an approved plan."`
}
