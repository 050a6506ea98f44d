#!/bin/sh
# Makes and updates Temporal's two databases; safe to run at every start. The password is in SQL_PASSWORD.
set -eu

schema() {
    set -- "$1" "/etc/temporal/schema/postgresql/v12/$2/versioned"
    temporal-sql-tool --plugin postgres12 --ep postgresql -p 5432 -u desktop --db "$1" create
    # Fails, harmlessly, when the version table is there already.
    temporal-sql-tool --plugin postgres12 --ep postgresql -p 5432 -u desktop --db "$1" setup-schema -v 0.0 || true
    temporal-sql-tool --plugin postgres12 --ep postgresql -p 5432 -u desktop --db "$1" update-schema -d "$2"
}

schema temporal temporal
schema temporal_visibility visibility
