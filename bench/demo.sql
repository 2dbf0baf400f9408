-- The demo's data: a small content-management system with forty tenants. Every
-- table hangs on cms.project by foreign keys, some of them through another
-- table, so that deleting a project reaches all of its rows. Plain SQL: any
-- client can load it, in a second or so.

CREATE SCHEMA cms;

CREATE TABLE cms.project (
    id         integer PRIMARY KEY,
    name       text NOT NULL,
    plan       text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE TABLE cms.member (
    id         integer PRIMARY KEY,
    project_id integer NOT NULL REFERENCES cms.project,
    email      text NOT NULL,
    role       text NOT NULL,
    UNIQUE (project_id, email)
);
CREATE TABLE cms.content_type (
    id         integer PRIMARY KEY,
    project_id integer NOT NULL REFERENCES cms.project,
    name       text NOT NULL,
    fields     jsonb NOT NULL
);
CREATE TABLE cms.record (
    id         bigint PRIMARY KEY,
    project_id integer NOT NULL REFERENCES cms.project,
    type_id    integer NOT NULL REFERENCES cms.content_type,
    author_id  integer NOT NULL REFERENCES cms.member,
    title      text NOT NULL,
    body       text NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX ON cms.record (project_id, updated_at);
CREATE TABLE cms.upload (
    id         bigint PRIMARY KEY,
    project_id integer NOT NULL REFERENCES cms.project,
    record_id  bigint NOT NULL REFERENCES cms.record,
    path       text NOT NULL,
    bytes      integer NOT NULL,
    sha256     bytea NOT NULL
);
CREATE INDEX ON cms.upload (record_id);
-- Somebody reads the sites all the time: the demo writes here, five rows a second.
CREATE TABLE cms.visit (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id integer NOT NULL REFERENCES cms.project,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON cms.visit (project_id);

INSERT INTO cms.project
SELECT p, (ARRAY['Harbour', 'Meadow', 'Lantern', 'Granite', 'Orchard', 'Compass', 'Willow', 'Ember'])[1 + p % 8]
       || ' ' || (ARRAY['Press', 'Kitchen', 'Journal', 'Museum', 'Radio'])[1 + p % 5],
       (ARRAY['free', 'team', 'business'])[1 + p % 3], timestamptz '2025-01-01 00:00:00+00' + p * interval '3 days'
  FROM generate_series(1, 40) p;

INSERT INTO cms.member
SELECT m, 1 + m % 40, 'user' || m || '@example.org', (ARRAY['owner', 'editor', 'viewer'])[1 + m % 3]
  FROM generate_series(0, 399) m;

-- Type t and member m belong to projects 1 + t % 40 and 1 + m % 40; what a
-- project's record points at is the project's own.
INSERT INTO cms.content_type
SELECT t, 1 + t % 40, (ARRAY['article', 'page', 'product', 'event'])[1 + t / 40 % 4],
       jsonb_build_object('title', 'text', 'body', 'markdown', 'position', t)
  FROM generate_series(0, 159) t;

INSERT INTO cms.record
SELECT r, 1 + r % 40, r % 160, r % 400,
       'About ' || substr(md5(r::text), 1, 8),
       (SELECT string_agg(md5((r * 31 + w)::text), ' ') FROM generate_series(1, 4 + r % 30) w),
       timestamptz '2026-01-01 00:00:00+00' + r * interval '37 minutes'
  FROM generate_series(1, 6000) r;

INSERT INTO cms.upload
SELECT u, 1 + u % 40, u, 'media/' || md5('u' || u) || '.jpg', 1000 + u * 7919 % 4000000, sha256(u::text::bytea)
  FROM generate_series(1, 3000) u;

INSERT INTO cms.visit (project_id) SELECT 1 + v % 40 FROM generate_series(1, 4000) v;

ANALYZE;
