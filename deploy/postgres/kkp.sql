-- Run once, by psql as the superuser, when PostgreSQL is set up: a database of KKP's, and a role that owns it and
-- nothing else. The password comes from a file, and stands on no command line and in no log.
\set ON_ERROR_STOP on
\set password `cat "$ROLE_PASSWORD_FILE"`
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
CREATE ROLE kkp LOGIN PASSWORD :'password';
CREATE DATABASE kkp OWNER kkp ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE kkp FROM PUBLIC;
